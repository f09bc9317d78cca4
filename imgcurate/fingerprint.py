"""What tells one value from another, by content: the same in every process, for as long as the value means the same.

A pickle's bytes do not: they hold line numbers, the order of sets, and what a process has imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import struct
import sysconfig
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from dask.base import tokenize

_PACKAGES = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_INSTALLED = tuple(os.path.realpath(path) + os.sep for path in [*_PACKAGES, os.path.dirname(__file__)])


def of(*values: Any) -> str:
    """Return 32 hex digits that stand for `values`.

    Parameters
    ----------
    *values
        Numbers, texts, bytes, paths, containers of these, arrays, PyTorch modules, dataclasses, objects by their attributes, and functions by
        their source, defaults, and the values that they close over or take from their module. What an installed package defines counts by its
        name. Of anything else Dask's ``tokenize`` is asked.

    Returns
    -------
    str
        xxh3_128 in hexadecimal.

    Examples
    --------
    >>> of(1, "a") == of(1, "a"), of({"a": 1, "b": 2}) == of({"b": 2, "a": 1}), of([1]) == of(1)
    (True, True, False)
    >>> add = lambda n: (lambda x: x + n)
    >>> of(add(1)) == of(add(1)), of(add(1)) == of(add(2))
    (True, False)
    """
    digest = xxhash.xxh3_128()
    for piece in _pieces(values, (frozenset(), set())):
        # With its length, so that no two sequences of pieces run into the same bytes.
        digest.update(struct.pack("<Q", len(piece)))
        digest.update(piece)
    return digest.hexdigest()


# The ids of what a value lies in, which may be itself, and of the definitions that were looked into already.
_Context = tuple[frozenset[int], set[int]]


def _pieces(value: Any, above: _Context) -> Iterator[bytes]:
    """Yield what tells `value` from others."""
    if value is None or isinstance(value, bool | int | float | complex | str):
        yield f"{type(value).__name__} {value!r}".encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes | bytearray):
        yield from (b"bytes", bytes(value))
    elif isinstance(value, os.PathLike):
        yield from (b"path", os.fsencode(value))
    elif id(value) in above[0]:
        yield b"itself"
    else:
        yield from _of_structure(value, (above[0] | {id(value)}, above[1]))


def _of_structure(value: Any, above: _Context) -> Iterator[bytes]:
    if isinstance(value, Mapping):
        yield b"mapping %d" % len(value)
        yield from sorted(of_item.encode() for of_item in (_joined(item, above) for item in value.items()))
    elif isinstance(value, set | frozenset):
        yield b"set %d" % len(value)
        yield from sorted(_joined(item, above).encode() for item in value)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield from (b"array", str((value.dtype.str, value.shape)).encode(), np.ascontiguousarray(value).tobytes())
    elif isinstance(value, np.generic):
        yield from (b"scalar", str(value.dtype.str).encode(), value.tobytes())
    elif isinstance(value, Sequence) and not isinstance(value, memoryview | range):
        yield b"sequence %d" % len(value)
        for item in value:
            yield from _pieces(item, above)
    elif isinstance(value, functools.partial):
        yield b"partial"
        yield from _pieces((value.func, value.args, value.keywords), above)
    elif isinstance(value, types.ModuleType):
        yield b"module " + value.__name__.encode()
        file = getattr(value, "__file__", None)
        if file is not None and not os.path.realpath(file).startswith(_INSTALLED):
            with open(file, "rb") as content:
                yield content.read()
    elif isinstance(value, types.MethodType):
        yield b"method"
        yield from _pieces((value.__self__, value.__name__), above)
    elif isinstance(value, type | types.FunctionType | types.BuiltinFunctionType) or _is_installed(value):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(value))}".encode()
        if not _is_installed(value):
            yield from _of_definition(value, above)
    elif hasattr(value, "state_dict") and hasattr(value, "named_modules"):
        yield b"network " + repr(value).encode()
        # Buffers that are not saved and plain attributes change what it computes as well.
        tensors = [*value.named_parameters(), *value.named_buffers()]
        state = {name: np.asarray(tensor.detach().cpu().float()) for name, tensor in tensors}
        plain = {
            name: (type(module), {key: item for key, item in vars(module).items() if not key.startswith("_")})
            for name, module in value.named_modules()
        }
        yield from _pieces((state, plain), above)
    elif dataclasses.is_dataclass(value):
        yield b"dataclass"
        yield from _pieces((type(value), {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}), above)
    elif type(value).__module__.partition(".")[0] in ("pandas", "pyarrow", "torch", "cupy", "cudf", "dask"):
        yield from (b"token", tokenize(value).encode())
    elif hasattr(value, "__dict__"):
        yield b"object"
        yield from _pieces((type(value), vars(value)), above)
    else:
        yield from (b"token", tokenize(value).encode())


def _joined(value: Any, above: _Context) -> str:
    digest = xxhash.xxh3_128()
    for piece in _pieces(value, above):
        digest.update(struct.pack("<Q", len(piece)) + piece)
    return digest.hexdigest()


def _of_definition(value: Any, above: _Context) -> Iterator[bytes]:
    """Yield a user's class by its methods and attributes, a function by its code and what it takes from around it."""
    if id(value) in above[1]:
        return
    above[1].add(id(value))
    if isinstance(value, type):
        for kind in value.__mro__:
            if not _is_installed(kind):
                own = {name: item for name, item in vars(kind).items() if name not in _OF_NO_MEANING}
                yield from _pieces({name: _plain(item) for name, item in sorted(own.items())}, above)
        return
    # The source alone would take lambdas of one line, and what decorators made of one function, for the same.
    with contextlib.suppress(OSError, TypeError):
        yield inspect.getsource(value).encode()
    code, around = value.__code__, value.__globals__
    yield from _of_code(code)
    names = sorted({name for name in _names(code) if name in around})
    cells = [_content(cell) for cell in value.__closure__ or ()]
    yield from _pieces((value.__defaults__, value.__kwdefaults__, cells), above)
    yield from _pieces({name: around[name] for name in names}, above)


_OF_NO_MEANING = (
    "__dict__",
    "__weakref__",
    "__module__",
    "__firstlineno__",
    "__static_attributes__",
    "__annotations__",
    "__doc__",
)


def _plain(item: Any) -> Any:
    """Return the function within a method of a class or a property."""
    if isinstance(item, staticmethod | classmethod):
        return item.__func__
    return (item.fget, item.fset) if isinstance(item, property) else item


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that is not bound yet
        return None


def _of_code(code: types.CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield repr((code.co_names, code.co_varnames, code.co_freevars)).encode()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant)
        else:
            yield repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant).encode()


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_installed(value: Any) -> bool:
    """Tell whether a class or function is of Python or of an installed package, which its version stands for."""
    if isinstance(value, types.BuiltinFunctionType):
        return True
    if not isinstance(value, type | types.FunctionType):
        return False
    try:
        file = inspect.getfile(value)
    except (OSError, TypeError):
        return value.__module__ == "builtins"
    return os.path.realpath(file).startswith(_INSTALLED)
