"""A pickle interpreter that can build plain data and tensors, and nothing else.

Python's own unpickler reserves memory as the file tells it to (memo slots, string lengths) and can call whatever the
file names. This one runs the same little language with every step bounded by the bytes present, looks each name up in
a fixed table of functions given to it, and refuses a file that asks for another name before anything of it runs. Names
of classes that only describe (arguments, paths, dates, configurations) become a `Skipped`: nothing is built or imported.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Optional

from jrdp.interchange.tensors import FormatError

# A checkpoint's pickle is a short program: about 50 steps a tensor.
_MAX_STEPS = 2_000_000
_MAX_INT_BYTES = 64  # states of random generators and UUIDs have 17
_MAX_LINE = 4096
# Longer byte strings are array contents: they stay views of the file.
_VIEW_FROM = 4096

_MARK = object()


@dataclass(frozen=True)
class Global:
    """A name that the pickle asked for: `build(*arguments)` stands for calling it, `value` for using it as data."""

    name: str
    build: Optional[Callable] = None
    value: Any = None


class Unpickler:
    """Reads one pickle after another from `data`, starting at `position` (public, to read what follows the pickles)."""

    def __init__(
        self,
        data: bytes,
        names: Mapping[tuple[str, str], Global],
        persistent: Optional[Callable[[tuple], Any]] = None,
    ):
        self.data = data
        self.position = 0
        self._view = memoryview(data)
        self._names = names
        self._persistent = persistent
        self._steps = 0

    def load(self) -> Any:
        """The next pickled value. Raises `FormatError` for everything but well-formed, allowed data."""
        self._stack: list = []
        self._memo: dict[int, Any] = {}
        while True:
            code = self._take(1)[0]
            if code == _STOP:
                return self._pop()
            self._steps += 1
            if self._steps > _MAX_STEPS:
                raise FormatError("its pickle is too long for a checkpoint; refused")
            step = _STEPS.get(code)
            if step is None:
                operation = bytes([code])
                raise FormatError(f"its pickle uses the operation {operation!r}, which no checkpoint needs; refused")
            step(self)

    # Reading bytes

    def _take(self, count: int) -> memoryview:
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise FormatError("it ends in the middle of a pickle: the file is truncated or damaged")
        part = self._view[self.position : end]
        self.position = end
        return part

    def _number(self, layout: str) -> int:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self, limit: int = _MAX_LINE) -> bytes:
        end = self.data.find(b"\n", self.position, self.position + limit)
        if end < 0:
            raise FormatError("it has an endless line in its pickle: the file is damaged")
        line = self.data[self.position : end]
        self.position = end + 1
        return line

    # The stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise FormatError("its pickle is damaged (a mark where a value should be)")
        return value

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise FormatError(f"its pickle is damaged (a {kind.__name__} was expected)")
        return self._stack[-1]

    def _pop_to_mark(self) -> list:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                values = self._stack[index + 1 :]
                del self._stack[index:]
                return values
        raise FormatError("its pickle is damaged (no mark)")

    # Steps: scalars

    def _proto(self) -> None:
        if self._take(1)[0] > 5:
            raise FormatError("its pickle has an unknown protocol")

    def _frame(self) -> None:
        length = self._number("<Q")
        if length > len(self.data) - self.position:
            raise FormatError("it ends in the middle of a pickle: the file is truncated or damaged")

    def _int_line(self) -> None:
        line = self._line(32)
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line))

    def _long_line(self) -> None:
        self._push(int(self._line(200).rstrip(b"L")))

    def _long(self, layout: str) -> None:
        count = self._number(layout)
        if not 0 <= count <= _MAX_INT_BYTES:
            raise FormatError("its pickle holds an absurdly large integer")
        self._push(int.from_bytes(self._take(count), "little", signed=True))

    # Steps: text and bytes

    def _text(self, layout: str) -> None:
        self._push(str(self._take(self._number(layout)), "utf-8", "surrogatepass"))

    def _bytes(self, layout: str) -> None:
        part = self._take(self._number(layout))
        self._push(part if len(part) >= _VIEW_FROM else bytes(part))

    def _python2_string(self, layout: str) -> None:
        part = self._take(self._number(layout))
        self._push(part if len(part) >= _VIEW_FROM else str(part, "latin-1"))

    def _python2_line(self) -> None:
        line = self._line(len(self.data))
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in b"'\"":
            raise FormatError("its pickle is damaged (a string without quotes)")
        self._push(codecs.escape_decode(line[1:-1])[0].decode("latin-1"))

    def _unicode_line(self) -> None:
        self._push(str(self._line(len(self.data)), "raw-unicode-escape"))

    # Steps: containers

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    def _append(self) -> None:
        value = self._pop()
        if not isinstance(self._stack[-1], Skipped):
            self._top(list).append(value)

    def _appends(self) -> None:
        values = self._pop_to_mark()
        if not isinstance(self._stack[-1], Skipped):
            self._top(list).extend(values)

    def _add_items(self) -> None:
        self._pop_to_mark()
        self._top(Skipped)

    def _frozenset(self) -> None:
        self._pop_to_mark()
        self._push(Skipped("builtins.frozenset"))

    def _set_items(self, values: list) -> None:
        if isinstance(self._stack[-1], Skipped):
            return
        target = self._top(dict)
        if len(values) % 2:
            raise FormatError("its pickle is damaged (a key without a value)")
        for key, value in zip(values[::2], values[1::2]):
            if is_key(key):
                target[key] = value

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _dict(self) -> None:
        values = self._pop_to_mark()
        self._push({})
        self._set_items(values)

    # Steps: memo

    def _put(self, index: int) -> None:
        if not self._stack or self._stack[-1] is _MARK:
            raise FormatError("its pickle is damaged (nothing to remember)")
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise FormatError("its pickle is damaged (it refers to a value that is not there)")
        self._push(self._memo[index])

    # Steps: names and calls

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise FormatError("its pickle is damaged (a name that is not text)")
        found = self._names.get((module, name))
        asked = f"{module}.{name}"[:100]
        if found is None and _only_describes(module, name):
            found = Global(asked, build=lambda *_: Skipped(asked))
        if found is None:
            raise FormatError(
                f"its pickle asks for {asked!r}, which is not on the list of allowed names; refused. If you trust the "
                'file, load it where it was made and save {"model": model.state_dict()} alone'
            )
        self._push(found)

    def _global_lines(self) -> None:
        module = str(self._line(), "utf-8")
        self._global(module, str(self._line(), "utf-8"))

    def _global_stack(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Global) or function.build is None or not isinstance(arguments, tuple):
            raise FormatError("its pickle calls something that is not a function; refused")
        self._push(function.build(*arguments))

    def _reduce_with_keywords(self) -> None:
        self._pop()
        arguments, function = self._pop(), self._pop()
        made = function.build() if isinstance(function, Global) and function.build is not None else None
        if not isinstance(made, Skipped) or not isinstance(arguments, tuple):
            raise FormatError("its pickle calls something that is not a function; refused")
        self._push(made)

    def _build(self) -> None:
        state = self._pop()
        target = self._stack[-1]
        if isinstance(target, OrderedDict):
            return  # a state dict's `_metadata`: version numbers of torch's modules
        set_state = target.set_state if isinstance(target, Buildable) else None
        if set_state is None:
            raise FormatError(f"its pickle sets the state of a {type(target).__name__}; refused")
        set_state(state)

    def _persistent_id(self) -> None:
        identifier = self._pop()
        if self._persistent is None or not isinstance(identifier, tuple):
            raise FormatError("its pickle refers to data outside of it; refused")
        self._push(self._persistent(identifier))


def is_key(key: Any) -> bool:
    """Whether an entry of this key is kept: no weights have another, and hashing what is nested could take for ever."""
    return isinstance(key, (str, bytes, float, type(None))) or (isinstance(key, int) and abs(key) < 1 << 64)


class Buildable:
    """A value that a pickle makes in two steps."""

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


class Skipped(Buildable):
    """Stands for an object that no weights need, whatever the pickle does to it; `name` is that of its class."""

    def __init__(self, name: str):
        self.name = name

    def set_state(self, state: Any) -> None:
        pass


class UnusualTensor(Skipped):
    """A tensor or array of a kind that no weight file holds; `remedy` makes a plain one of it, where there is a way."""

    def __init__(self, name: str, remedy: str = ""):
        super().__init__(name)
        self.remedy = remedy


# Where names beginning with a capital letter do things as well (subprocess.Popen): a file that asks for one of these is
# not an innocent one.
_ACTING = {
    "os", "posix", "nt", "sys", "subprocess", "importlib", "runpy", "shutil", "socket", "ctypes", "pty", "code", "codeop",
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "webbrowser", "operator", "_operator",
    "commands", "asyncio", "multiprocessing", "threading", "pdb", "bdb", "timeit", "cProfile", "profile", "pip", "urllib",
    "http", "ftplib", "smtplib", "signal", "io", "_io", "tempfile", "zipfile", "tarfile", "builtins", "__builtin__",
}  # fmt: skip
# Classes and constructors in small letters that hold data only.
_DESCRIBING = {
    ("collections", "defaultdict"), ("collections", "deque"), ("datetime", "datetime"), ("datetime", "date"),
    ("datetime", "time"), ("datetime", "timedelta"), ("datetime", "timezone"), ("copyreg", "_reconstructor"),
    ("copy_reg", "_reconstructor"), ("copyreg", "__newobj__"), ("builtins", "set"), ("builtins", "frozenset"),
    ("builtins", "complex"), ("builtins", "slice"), ("builtins", "range"), ("builtins", "bytearray"),
    ("builtins", "object"), ("builtins", "list"), ("builtins", "dict"), ("builtins", "tuple"), ("builtins", "int"),
    ("builtins", "float"), ("builtins", "str"), ("builtins", "bool"), ("__builtin__", "set"), ("__builtin__", "object"),
    ("__builtin__", "complex"), ("__builtin__", "frozenset"), ("__builtin__", "bytearray"), ("__builtin__", "slice"),
    ("__builtin__", "xrange"), ("__builtin__", "list"), ("__builtin__", "dict"), ("numpy.random", "__RandomState_ctor"),
    ("numpy.random._pickle", "__randomstate_ctor"), ("numpy.random._pickle", "__generator_ctor"),
    ("numpy.random._pickle", "__bit_generator_ctor"), ("pathlib._local", "PosixPath"), ("argparse", "Namespace"),
}  # fmt: skip


def _only_describes(module: str, name: str) -> bool:
    """Whether this names a class, by the usual spelling, of a module that does nothing but hold data."""
    if (module, name) in _DESCRIBING:
        return True
    if module.split(".")[0] in _ACTING or len(module) + len(name) > 200:
        return False
    return all(part.isidentifier() and part.lstrip("_")[:1].isupper() for part in name.split("."))


_STOP = pickle.STOP[0]
_STEPS: dict[int, Callable[[Unpickler], None]] = {
    code[0]: step
    for code, step in {
        pickle.PROTO: Unpickler._proto,
        pickle.FRAME: Unpickler._frame,
        pickle.MARK: lambda self: self._push(_MARK),
        pickle.POP: lambda self: self._stack.pop(),
        pickle.POP_MARK: lambda self: self._pop_to_mark(),
        pickle.NONE: lambda self: self._push(None),
        pickle.NEWTRUE: lambda self: self._push(True),
        pickle.NEWFALSE: lambda self: self._push(False),
        pickle.INT: Unpickler._int_line,
        pickle.BININT: lambda self: self._push(self._number("<i")),
        pickle.BININT1: lambda self: self._push(self._number("<B")),
        pickle.BININT2: lambda self: self._push(self._number("<H")),
        pickle.LONG: Unpickler._long_line,
        pickle.LONG1: lambda self: self._long("<B"),
        pickle.LONG4: lambda self: self._long("<i"),
        pickle.FLOAT: lambda self: self._push(float(self._line(64))),
        pickle.BINFLOAT: lambda self: self._push(self._number(">d")),
        pickle.STRING: Unpickler._python2_line,
        pickle.BINSTRING: lambda self: self._python2_string("<i"),
        pickle.SHORT_BINSTRING: lambda self: self._python2_string("<B"),
        pickle.UNICODE: Unpickler._unicode_line,
        pickle.BINUNICODE: lambda self: self._text("<I"),
        pickle.SHORT_BINUNICODE: lambda self: self._text("<B"),
        pickle.BINUNICODE8: lambda self: self._text("<Q"),
        pickle.BINBYTES: lambda self: self._bytes("<I"),
        pickle.SHORT_BINBYTES: lambda self: self._bytes("<B"),
        pickle.BINBYTES8: lambda self: self._bytes("<Q"),
        pickle.BYTEARRAY8: lambda self: self._bytes("<Q"),
        pickle.EMPTY_LIST: lambda self: self._push([]),
        pickle.LIST: lambda self: self._push(self._pop_to_mark()),
        pickle.APPEND: Unpickler._append,
        pickle.APPENDS: Unpickler._appends,
        pickle.EMPTY_TUPLE: lambda self: self._push(()),
        pickle.EMPTY_SET: lambda self: self._push(Skipped("builtins.set")),
        pickle.ADDITEMS: Unpickler._add_items,
        pickle.FROZENSET: Unpickler._frozenset,
        pickle.TUPLE: lambda self: self._push(tuple(self._pop_to_mark())),
        pickle.TUPLE1: lambda self: self._tuple(1),
        pickle.TUPLE2: lambda self: self._tuple(2),
        pickle.TUPLE3: lambda self: self._tuple(3),
        pickle.EMPTY_DICT: lambda self: self._push({}),
        pickle.DICT: Unpickler._dict,
        pickle.SETITEM: Unpickler._set_item,
        pickle.SETITEMS: lambda self: self._set_items(self._pop_to_mark()),
        pickle.PUT: lambda self: self._put(int(self._line(32))),
        pickle.BINPUT: lambda self: self._put(self._number("<B")),
        pickle.LONG_BINPUT: lambda self: self._put(self._number("<I")),
        pickle.MEMOIZE: lambda self: self._put(len(self._memo)),
        pickle.GET: lambda self: self._get(int(self._line(32))),
        pickle.BINGET: lambda self: self._get(self._number("<B")),
        pickle.LONG_BINGET: lambda self: self._get(self._number("<I")),
        pickle.GLOBAL: Unpickler._global_lines,
        pickle.STACK_GLOBAL: Unpickler._global_stack,
        pickle.REDUCE: Unpickler._reduce,
        pickle.NEWOBJ: Unpickler._reduce,
        pickle.NEWOBJ_EX: Unpickler._reduce_with_keywords,
        pickle.BUILD: Unpickler._build,
        pickle.BINPERSID: Unpickler._persistent_id,
    }.items()
}
