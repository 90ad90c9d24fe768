"""Reading PyTorch checkpoints without torch: the zip format (torch >= 1.6) and the legacy one before it."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

from jrdp.interchange.pickled_arrays import UNUSUAL_TYPES, Storage, allowed_names, plain
from jrdp.interchange.pickles import Global, Unpickler
from jrdp.interchange.tensors import NUMPY_TYPES, Budget, FormatError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
_BIG_ENDIAN = "it was written on a big-endian machine, which is not supported; load it with torch and save it anew"
_MAX_DIRECTORY = 16 << 20  # bytes; a tensor takes about 100
_ZIP_TAIL = (1 << 16) + 256  # the longest comment and the records that end a zip file


def read_zip(path: Path) -> Any:
    """The value that `torch.save` stored in a zip file, as plain data. Raises `FormatError`."""
    size = path.stat().st_size
    budget = Budget(size)
    _check_directory(path)
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise FormatError("it is a zip file without a readable directory: truncated or damaged") from error
    with archive:
        _refuse_other_archives({entry.filename for entry in archive.infolist()})
        entries = _checked_entries(archive, size)
        pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise FormatError("it is a zip file, but not one that torch.save wrote")
        root = pickles[0][: -len("data.pkl")]
        if f"{root}byteorder" in entries and _content(archive, entries[f"{root}byteorder"]).strip() != b"little":
            raise FormatError(_BIG_ENDIAN)
        storages: dict[str, Storage] = {}

        def load_storage(identifier: tuple) -> Storage:
            dtype, key, count = _storage_identifier(identifier)
            if key not in storages:
                entry = entries.get(f"{root}data/{key}")
                storage = Storage(dtype, count)
                if entry is None or entry.file_size != storage.nbytes:
                    found = "no entry" if entry is None else f"{entry.file_size} bytes"
                    wanted = f"{storage.nbytes} bytes"
                    raise FormatError(f"storage {key[:20]!r} should have {wanted} but has {found}: damaged")
                storage.data = _content(archive, entry)
                storages[key] = storage
            elif storages[key].dtype != dtype or storages[key].count != count:
                raise FormatError(f"storage {key[:20]!r} is described in two ways: the file is damaged")
            return storages[key]

        data = _content(archive, entries[pickles[0]])
        return plain(Unpickler(data, allowed_names(budget), load_storage).load(), budget)


def _check_directory(path: Path) -> None:
    """Refuse a directory of millions of entries before `zipfile` makes an object of each."""
    with open(path, "rb") as stream:
        stream.seek(-min(path.stat().st_size, _ZIP_TAIL), 2)
        tail = stream.read()
    for signature, field, layout in ((b"PK\x05\x06", 12, "<I"), (b"PK\x06\x06", 40, "<Q")):
        at = tail.rfind(signature)
        if at >= 0 and at + field + struct.calcsize(layout) <= len(tail):
            if struct.unpack_from(layout, tail, at + field)[0] > _MAX_DIRECTORY:
                raise FormatError("its zip directory is far too large for a checkpoint; refused")


def _refuse_other_archives(names: set[str]) -> None:
    """Name the kinds of zip file that people take for checkpoints."""
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last or any("/code/" in f"/{name}" and name.endswith(".py") for name in names):
        raise FormatError(
            "it is TorchScript (torch.jit.save), a program and not a checkpoint; save its tensors alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
        )
    if "serialized_exported_program.json" in last or any(name.endswith("models/model.json") for name in names):
        raise FormatError("it is an exported program (torch.export), not a checkpoint; save the model's state_dict()")
    if names and all(name.endswith(".npy") for name in names):
        raise FormatError("it is NumPy's .npz; save its arrays as .safetensors (safetensors.numpy.save_file)")
    if last & {"[Content_Types].xml", "AndroidManifest.xml", "model.weights.h5"}:
        raise FormatError("it is a zip file of another program, not one that torch.save wrote")
    if names and "data.pkl" not in last:
        inside = sorted(name for name in names if name.endswith((".pth", ".pt", ".pkl", ".safetensors")))
        hint = f": unpack it and name {inside[0][:60]}" if inside else ""
        raise FormatError(f"it is a zip file, but not one that torch.save wrote{hint}")


def _checked_entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise FormatError(
                "it is a compressed zip file, which torch.save never writes; refused: pack it again without compression "
                "(zip -0), or load it with torch and save it anew"
            )
        if entry.flag_bits & 1:
            raise FormatError("it is an encrypted zip file; refused")
        if entry.filename in entries:
            raise FormatError("it is a zip file with two entries of one name; refused")
        entries[entry.filename] = entry
    if sum(entry.file_size for entry in entries.values()) > size:
        raise FormatError("its entries claim more bytes than the file has: truncated or damaged")
    return entries


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        data = archive.read(entry)
    except (zipfile.BadZipFile, EOFError) as error:
        raise FormatError(f"its entry {entry.filename[:60]!r} fails its checksum: the file is damaged") from error
    if len(data) != entry.file_size:
        raise FormatError(f"its entry {entry.filename[:60]!r} is cut off: the file is truncated")
    return data


def _storage_identifier(identifier: tuple) -> tuple[str, str, int]:
    """(element type, key, number of elements) of the tuple that torch writes for a storage."""
    if len(identifier) not in (5, 6) or identifier[0] != "storage":
        raise FormatError("its pickle refers to something that is not a tensor's storage; refused")
    kind, key, _, count = identifier[1:5]
    if not isinstance(kind, Global) or kind.value not in (*NUMPY_TYPES, *UNUSUAL_TYPES) or not isinstance(key, str):
        raise FormatError("a tensor's storage is described wrongly: the file is damaged")
    if type(count) is not int or not 0 <= count < 1 << 48:
        raise FormatError("a tensor's storage has an impossible size: the file is damaged")
    if len(identifier) == 6 and identifier[5] is not None:
        raise FormatError("it holds storage views of torch 0.3 or older, which are not supported")
    return kind.value, key, count


def read_legacy(data: bytes) -> Any:
    """The value that `torch.save` of torch < 1.6 stored, as plain data. Raises `FormatError`."""
    budget = Budget(len(data))
    storages: dict[str, Storage] = {}

    def load_storage(identifier: tuple) -> Storage:
        dtype, key, count = _storage_identifier(identifier)
        known = storages.setdefault(key, Storage(dtype, count))
        if known.dtype != dtype or known.count != count:
            raise FormatError(f"storage {key[:20]!r} is described in two ways: the file is damaged")
        return known

    reader = Unpickler(data, allowed_names(budget), load_storage)
    if reader.load() != MAGIC_NUMBER or reader.load() != PROTOCOL_VERSION:
        raise FormatError("it is not a PyTorch checkpoint of a known version")
    system = reader.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise FormatError(_BIG_ENDIAN)
    value = reader.load()
    keys = reader.load()
    if not isinstance(keys, list) or set(map(type, keys)) - {str} or set(keys) != set(storages):
        raise FormatError("its list of storages does not fit its tensors: truncated or damaged")
    position = reader.position
    for key in keys:
        storage = storages[key]
        if position + 8 + storage.nbytes > len(data):
            raise FormatError("it ends in the middle of a tensor: the file is truncated")
        (count,) = struct.unpack_from("<q", data, position)
        if count != storage.count:
            raise FormatError("the size of a tensor's data differs from its description: the file is damaged")
        position += 8
        storage.data = memoryview(data)[position : position + storage.nbytes]
        position += storage.nbytes
    return plain(value, budget)


