"""How a photograph becomes network input; the same code for training, testing and prediction.

Conventions 8 and 9: decode to RGB without EXIF rotation, resize with PIL's antialiased bilinear filter in uint8, reorder the
channels, subtract the mean, pad right and bottom with zeros to a multiple of 32.
"""

from __future__ import annotations

import os
from typing import NamedTuple, Optional, Sequence

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from jrdp.config import InputConfig
from jrdp.data.augmentation import Look, change_colours
from jrdp.data.other_formats import HEIC_SUFFIXES, can_read_heic, open_picture, refuse_large
from jrdp.errors import UserError
from jrdp.files import refuse_special
from jrdp.structures import ImageBatch

SIZE_DIVISOR = 32  # P5 has stride 32, and the FPN doubles map sizes on its way down

_ORIENTATION = 0x0112  # the EXIF tag
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # of TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What pictures are called, wherever a folder is looked through; Pillow may lack a decoder for the last ones.
PICTURE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .webp .tif .tiff .gif .avif .heic .heif".split()
)


class PreparedImage(NamedTuple):
    """One picture, ready to be put into a batch.

    pixels: float32 `[3, h, w]`, resized and normalised, not padded.
    original_size: (height, width) of the photograph.
    image_id: its COCO id, where it comes from a dataset. file: where it was read from, for an error.
    """

    pixels: np.ndarray
    original_size: tuple[int, int]
    image_id: Optional[int] = None
    file: Optional[str] = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) after resizing."""
        return self.pixels.shape[1], self.pixels.shape[2]


def read_image(path: str | os.PathLike, mode: Optional[str] = "RGB", upright: bool = False) -> Image.Image:
    """The picture at `path`, decoded completely; an EXIF rotation is ignored (convention 8) unless `upright`.

    `mode` is Pillow's; None leaves pixels as they are in the file (palette indices, 16 bits). Grey pictures of 16 bits
    become 8 bits by the range of their type (65535 is 255; 4095 where a TIFF has 12 bits), never by what they hold, so
    that of two pictures of one camera the darker stays darker. `upright` turns the picture as its EXIF orientation says;
    `info["turned"]` tells whether it did, and `info["first_of"]` whether the file holds more frames or pages.

    Raises `UserError` when the file is missing, unreadable, no image, truncated or damaged, or larger than
    Pillow's limit against decompression bombs (about 89 million pixels).
    """
    refuse_special(path)
    try:
        with open_picture(path) as image:
            refuse_large(path, image.width, image.height)
            if ImageFile.LOAD_TRUNCATED_IMAGES:
                raise UserError(
                    f"cannot read image {path} safely: PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process and "
                    "fills damaged pictures with grey; set it to False"
                )
            return decoded(image, upright, mode, path)
    except UserError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own word for twice the limit, before it tells the size
        raise UserError(
            f"cannot read image {path}: it has more pixels than twice the limit of {Image.MAX_IMAGE_PIXELS}; shrink the "
            "picture first"
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(f"cannot read image {path}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"cannot read image {path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"cannot read image {path}: it is a folder") from error
    except Exception as error:  # decoders of damaged files raise almost anything (OSError, SyntaxError, struct.error)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read image {path}: {reason}") from error


def decoded(image: Image.Image, upright: bool, mode: Optional[str] = "RGB", name: str | os.PathLike = "given") -> Image.Image:
    """`read_image` for a picture that Pillow has opened or made, and perhaps turned here before; `name` is for a `UserError`."""
    several = _has_several_frames(image)
    image.load()  # Pillow turns a TIFF itself while it loads it, and forgets its orientation
    turn = _TURNS.get(exif_orientation(image)) if upright and not image.info.get("turned") else None
    picture = image.copy() if mode is None else (_eight_bits(image, name) if mode == "RGB" else image).convert(mode)
    if turn is not None:
        picture = picture.transpose(turn)
        picture.info["turned"] = True
    if several:
        picture.info["first_of"] = True
    picture.filename = getattr(image, "filename", "")  # which Pillow's copies lose
    return picture


def _has_several_frames(image: Image.Image) -> bool:
    """Whether the file holds more pictures of the same kind: an animation or pages, no thumbnails or gain maps of telephones."""
    try:
        return image.format in ("GIF", "WEBP", "PNG", "TIFF") and bool(image.is_animated)
    except Exception:  # a damaged second frame, or a decoder that reads the first alone
        return False


def is_readable(suffix: str) -> bool:
    """Whether there is a decoder here for files that end like this (".jpg")."""
    if suffix.lower() in HEIC_SUFFIXES and can_read_heic():
        return True
    return Image.registered_extensions().get(suffix.lower()) in Image.OPEN


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an open picture, 1 to 8; 1 (upright) where it has none or a damaged one."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # what a damaged EXIF block raises; its pixels are as good as ever
        return 1
    return value if value in _TURNS else 1


def _eight_bits(image: Image.Image, path: str | os.PathLike) -> Image.Image:
    """`image`, or the same scaled to 8 bits where it is grey of 16 bits: Pillow's own conversion clips at 255."""
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if wide:
        white, zero_is_white = _sixteen_bits(image)
        values = np.minimum(np.asarray(image).astype(np.uint32), white)
        values = white - values if zero_is_white else values
        return Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise UserError(
            f"cannot read image {path}: its pixels are {kind}, whose black and white nobody knows; save it with 8 bits"
        )
    return image


def _sixteen_bits(image: Image.Image) -> tuple[int, bool]:
    """The largest number of a grey picture that Pillow gives in 16 bits, and whether 0 is white, as the file says.

    What Pillow scales or turns round itself needs neither; of TIFF it leaves both, 12 bits and "0 is white".
    """
    tags = getattr(image, "tag_v2", {})
    (bits, *_) = tags.get(_BITS_PER_SAMPLE, (16,))  # Pillow gives 16 bits for 12 and 16 alone
    return 2**bits - 1, tags.get(_PHOTOMETRIC) == 0


def resize_shape(width: int, height: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) to which a picture of `width` x `height` is resized (convention 8).

    The short side becomes `min_size`, or less where the long side would exceed `max_size`: then the short side is
    rounded (half to even) and the long side truncated, which can leave it at `max_size` + 1 (1000x320 -> 481x154).
    Pictures so thin that the rule asks for a short side of 0 become 1 x `max_size` (convention 31).
    """
    short, long = min(width, height), max(width, height)
    size = min_size
    if long / short * size > max_size:
        size = int(round(max_size * short / long))
    if size == 0:
        return (1, max_size) if width >= height else (max_size, 1)
    if short == size:
        return height, width
    if width < height:
        return int(size * height / width), size
    return size, int(size * width / height)


def sizes_of(config: InputConfig, look: Optional[Look] = None) -> tuple[int, int]:
    """(min_size, max_size) for `resize_shape`: those of `config`, both changed in proportion where `look` asks for it."""
    if look is None or look.min_size is None:
        return config.min_size, config.max_size
    return look.min_size, round(config.max_size * look.min_size / config.min_size)


def resize_image(image: Image.Image, config: InputConfig, look: Optional[Look] = None) -> Image.Image:
    """`image` (RGB) at the size of `resize_shape`, by PIL's bilinear filter, which is antialiased when it shrinks."""
    height, width = resize_shape(image.width, image.height, *sizes_of(config, look))
    return image.resize((width, height), Image.BILINEAR)


def prepare_image(
    image: Image.Image,
    config: InputConfig,
    flip: bool = False,
    image_id: Optional[int] = None,
    look: Optional[Look] = None,
) -> PreparedImage:
    """An RGB picture resized, mirrored when `flip`, varied as `look` says, and normalised as `config` says."""
    resized = resize_image(image, config, look)
    pixels = np.asarray(resized if look is None else change_colours(resized, look))  # [h, w, 3] uint8, RGB
    if flip:
        pixels = pixels[:, ::-1]
    if config.channel_order == "bgr":
        pixels = pixels[:, :, ::-1]
    pixels = pixels.transpose(2, 0, 1).astype(np.float32, order="C")  # [3, h, w]
    if config.scale != 255:  # x / 255 * 255 gives back the integers exactly, so 255 needs no arithmetic
        pixels /= np.float32(255)
        pixels *= np.float32(config.scale)
    pixels -= np.asarray(config.mean, dtype=np.float32)[:, None, None]
    pixels /= np.asarray(config.std, dtype=np.float32)[:, None, None]
    return PreparedImage(pixels, (image.height, image.width), image_id, os.fsdecode(getattr(image, "filename", "")) or None)


def padded_shape(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(height, width) of a batch of pictures of these (height, width): the largest, rounded up to multiples of 32."""
    height, width = np.max(np.asarray(sizes), axis=0)
    return -(-int(height) // SIZE_DIVISOR) * SIZE_DIVISOR, -(-int(width) // SIZE_DIVISOR) * SIZE_DIVISOR


def batch_images(images: Sequence[PreparedImage], shape: tuple[int, int] | None = None) -> ImageBatch:
    """Prepared pictures in one array, zero-padded right and bottom after normalisation (convention 9).

    Pictures without an image id get their position in the batch.

    shape: (height, width) of the padded array where it is larger than these pictures need (a share of a larger batch).
    """
    if not images:
        raise ValueError("a batch needs at least one picture")
    sizes = [image.size for image in images]
    height, width = padded_shape(sizes) if shape is None else shape
    pixels = np.zeros((len(images), 3, height, width), dtype=np.float32)
    for slot, image in zip(pixels, images):
        slot[:, : image.size[0], : image.size[1]] = image.pixels
    ids = [i if image.image_id is None else image.image_id for i, image in enumerate(images)]
    return ImageBatch(pixels, sizes, [image.original_size for image in images], ids, [image.file for image in images])
