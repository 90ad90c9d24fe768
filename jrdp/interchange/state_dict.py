"""The weights in what a file held: the one dictionary of tensors, and its names without what wrappers put before them."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, NamedTuple

import numpy as np

from jrdp.interchange import backbones
from jrdp.interchange.pickles import Skipped, UnusualTensor
from jrdp.interchange.tensors import BFloat16, FormatError, Tensor, dtype_name

KNOWN = ("model", "state_dict", "model_state_dict", "blobs")  # entries that hold the weights, best first
_DEPTH = 3  # entries in entries that are looked into
# What torch puts into names wherever it wraps a module.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_COUNTERS = {"n_averaged"}  # of torch's AveragedModel, beside the names that share a prefix
_SHOWN = 6


class Found(NamedTuple):
    """tensors: name -> tensor. path: the entries that lead to them, () for the whole file. others: what was not used."""

    tensors: dict[str, Tensor]
    path: tuple[str, ...]
    others: list[str]


def find_weights(value: Any) -> Found:
    """The dictionary of tensors in what a pickle held. Raises `FormatError` where there is none, or several alike."""
    if isinstance(value, Skipped):
        raise FormatError(
            f"it holds a whole object ({value.name}), not its weights; load it where its classes are and save "
            '{"model": model.state_dict()}'
        )
    if not isinstance(value, dict):
        raise FormatError(f"it holds a {type(value).__name__}, not a dictionary of tensors")
    if not value:
        raise FormatError("it holds no tensors")
    chosen, path = _choose(value, list(_dictionaries(value, ())))
    others = [_described(key, entry) for key, entry in value.items() if path and str(key) != path[0]]
    tensors = {}
    for name, entry in chosen.items():
        if isinstance(name, str) and _is_tensor(entry):
            dtype_name(entry)
            tensors[name] = entry
        elif (not path and not _is_unusual_weight(name, entry)) or path[-1:] == ("blobs",) or _is_plain(entry):
            # Numbers and texts of the training lie between the tensors in some files.
            others += [] if path and path[-1] == "blobs" else [_described(name, entry)]
        else:
            raise FormatError(f"its entry {str(name)[:60]!r} is {_kind(entry)}, not a tensor{_remedy(entry)}")
    return Found(tensors, path, others)


def _choose(value: dict, found: list[tuple[tuple[str, ...], dict]]) -> tuple[dict, tuple[str, ...]]:
    by_path = {path: entry for path, entry in found}
    for name in KNOWN:
        if (name,) in by_path:
            return by_path[(name,)], (name,)
    # A number that a training keeps beside the dictionary of weights, as a tensor, makes no weights of the whole file.
    if () in by_path and (_is_network(value) or not any(_is_network(entry) for path, entry in found if path)):
        return by_path[()], ()
    by_path.pop((), None)
    inner = [path for path in by_path if path[-1] in KNOWN] or list(by_path)
    ours = [path for path in inner if _is_network(by_path[path])]
    for paths in (inner, ours):
        if len(paths) == 1:
            return by_path[paths[0]], paths[0]
    if found:
        names = ", ".join(".".join(path) for path in list(by_path)[:_SHOWN])
        raise FormatError(f'it holds several dictionaries of tensors ({names}); save the right one as {{"model": ...}}')
    entries = ", ".join(_described(key, entry) for key, entry in list(value.items())[:_SHOWN])
    if any(_is_optimizer(entry) for entry in (value, *value.values())):
        raise FormatError(f"it holds the state of an optimizer and no weights (its entries: {entries})")
    for key, entry in value.items():
        if isinstance(entry, Skipped) and key in KNOWN:
            raise FormatError(
                f"its entry {key!r} is a whole object ({entry.name}), not its weights; load it where its classes are and "
                'save {"model": model.state_dict()}'
            )
    raise FormatError(f"it holds no dictionary of tensors (looked for: {', '.join(KNOWN)}; its entries: {entries})")


def _is_network(entry: dict) -> bool:
    """Whether the names of its tensors are those of a network that is known here."""
    tensors = {name: tensor for name, tensor in entry.items() if isinstance(name, str) and _is_tensor(tensor)}
    return bool(tensors) and backbones.naming(without_prefixes(tensors)[0]) != backbones.UNKNOWN


def _dictionaries(value: dict, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Every dictionary that holds tensors itself, with the entries that lead to it; optimizers are left out."""
    if _is_optimizer(value):
        return
    if any(isinstance(name, str) and _is_tensor(entry) for name, entry in value.items()):
        yield path, value
    if len(path) < _DEPTH:
        for name, entry in value.items():
            if isinstance(name, str) and isinstance(entry, dict):
                yield from _dictionaries(entry, (*path, name))


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("param_groups"), list)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (np.ndarray, BFloat16))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, bytes))


def _is_unusual_weight(name: Any, value: Any) -> bool:
    """Whether an entry of a whole file is a weight that is not built; what has no name of a module's may be anything."""
    return isinstance(value, UnusualTensor) and "." in str(name)


def _remedy(value: Any) -> str:
    remedy = value.remedy if isinstance(value, UnusualTensor) else ""
    return f" of plain numbers; save it as {remedy}" if remedy else ""


def _kind(value: Any) -> str:
    return f"{value.name} (not built)" if isinstance(value, Skipped) else f"a {type(value).__name__}"


def _described(name: Any, value: Any) -> str:
    return f"{str(name)[:60]} ({value.name[:60]}, not built)" if isinstance(value, Skipped) else str(name)[:60]


def without_prefixes(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], str, list[str]]:
    """(tensors under their own names, what was taken off, names left out) of a state dict that wrappers renamed.

    Taken off are the parts that torch's wrappers put anywhere (`_orig_mod.`), and the first parts that all names share
    (`module.`, `model.`, `net.`, nested) where that leaves the names of a network. Raises `FormatError` for names that
    would then be the same.
    """
    taken: list[str] = []
    counters = [name for name in tensors if name in _COUNTERS]
    named = {name: tensor for name, tensor in tensors.items() if name not in _COUNTERS}
    if any(not _WRAPPERS.isdisjoint(name.split(".")) for name in named):
        taken += [part for part in sorted(_WRAPPERS) if any(part in name.split(".") for name in named)]
        named = _renamed({name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in named}, named)
    shared: list[str] = []
    rest = named
    while rest and backbones.naming(rest) == backbones.UNKNOWN:
        first = next(iter(rest)).partition(".")[0] + "."
        if not all(name.startswith(first) and len(name) > len(first) for name in rest):
            break
        shared.append(first[:-1])
        rest = _renamed({name: name[len(first) :] for name in rest}, rest)
    if rest and backbones.naming(rest) == backbones.UNKNOWN:  # no network's with any of it taken off: only torch's own
        shared = shared[: next((index for index, part in enumerate(shared) if part != "module"), len(shared))]
        rest = {name[sum(len(part) + 1 for part in shared) :]: tensor for name, tensor in named.items()}
    named = rest
    taken += shared
    if not taken:
        return dict(tensors), "", []
    return named, "".join(f"{part}." for part in taken), counters


def _renamed(names: dict[str, str], tensors: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {new: tensors[old] for old, new in names.items()}
    if len(renamed) != len(tensors):
        raise FormatError("two of its names are the same without the prefixes of wrappers")
    return renamed
