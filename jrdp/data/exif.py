"""What a picture's EXIF orientation, followed or not, means for annotations that were drawn on it."""

from __future__ import annotations

from PIL import Image

from jrdp.data.transforms import exif_orientation


def turn_hint(picture: Image.Image, size: tuple[int, int], remedy: str) -> str:
    """What to do where a picture, as `read_image` gave it, has the `size` (width, height) of its annotations once turned.

    Empty where turning does not help. remedy: the option by which EXIF orientations are followed.
    """
    if picture.size[::-1] != size or picture.info.get("turned"):
        return ""
    if exif_orientation(picture) < 5:
        return " (turned by 90 degrees, and its EXIF does not say so)"
    return f" (its EXIF turns it: {remedy} follows that)"


def turns_unseen(picture: Image.Image) -> bool:
    """Whether a picture has an orientation that was not followed and would not change its size, so that no size tells."""
    orientation = exif_orientation(picture)
    keeps_size = orientation < 5 or picture.width == picture.height
    return orientation != 1 and keeps_size and not picture.info.get("turned")


def unseen_note(pictures: str, drawn: str) -> str:
    """A line about `pictures` ("3 pictures") that `turns_unseen`; drawn: what was drawn on them."""
    return (
        f"note: {pictures} have an EXIF orientation, which is ignored and would not change their size: right for {drawn} in the "
        "file's own pixels; --exif apply is for those of the turned picture"
    )
