"""A GPU played by this machine: the cuDF halves of these tests, run where there is none.

    python -m pytest -p gpu.standin tests/gpu -k "cudf or come_back"

NumPy plays CuPy, pandas plays cuDF and tensors of the CPU play CUDA's, and each refuses what the real one refuses: a host array among arrays of
the device, a copy to the host that nobody asked for, tensors of two devices in one operation, a function that CuPy does not have or (where it
is installed) that takes no such argument. So the lines that only a GPU reaches are executed. Nothing is said of kernels, memory or speed, and
where a test is about what cuDF itself does with a frame, pandas' answer proves nothing and the test is skipped.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import dask
import dask.dataframe as dd
import distributed
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import transformers
from dask.utils import Dispatch
from torch.overrides import TorchFunctionMode

import imgcurate
from imgcurate import cluster, vectors
from imgcurate.run.tasks import steps

_CUDA = torch.device("cuda", 0)
#: Tests of what cuDF and a cluster do themselves.
_OTHERS_WORK = ("test_cluster", "test_frames", "test_names")


# CuPy


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of the device: NumPy sees what is in it only through `get`."""

    __module__ = "cupy"

    def __init__(self, host: Any) -> None:
        self._host = np.asarray(host)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        options |= {} if out is None else {"out": out}
        made = getattr(ufunc, method)(*_unwrapped(inputs), **_unwrapped(options))
        return _wrapped(made) if out is None else out[0]

    def __array_function__(self, function: Callable[..., Any], _: Any, arguments: Any, options: Any) -> Any:
        return getattr(cupy, function.__name__)(*arguments, **options)

    def __getitem__(self, key: Any) -> Any:
        return _wrapped(self._host[_unwrapped(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._host[_unwrapped(key)] = _unwrapped(value)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[Any]:
        return map(_wrapped, self._host)

    def __bool__(self) -> bool:
        return bool(self._host)

    def __int__(self) -> int:
        return int(self._host)

    def __float__(self) -> float:
        return float(self._host)

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        return self._host.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._host.__dlpack_device__()

    def get(self) -> np.ndarray:
        return self._host.copy()

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self._host.__array_interface__["data"][0])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._host, name)
        if _real_cupy is not None:
            getattr(_real_cupy.ndarray, name)
        return _on_host(found) if callable(found) else _wrapped(found)


def _unwrapped(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"Unsupported type {type(value)}: an array of the host among those of the device")
    if isinstance(value, list | tuple):
        return type(value)(_unwrapped(item) for item in value)
    return {key: _unwrapped(item) for key, item in value.items()} if isinstance(value, dict) else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(value)
    return tuple(_wrapped(item) for item in value) if isinstance(value, tuple) else value


def _on_host(function: Callable[..., Any], like: Any = None) -> Callable[..., Any]:
    """Return a function of arrays of the host as one of arrays of the device, which takes what `like` takes."""

    def on_device(*arguments: Any, **options: Any) -> Any:
        if like is not None:
            like.bind(*arguments, **options)
        made = function(*_unwrapped(arguments), **_unwrapped(options))
        return options["out"] if options.get("out") is not None else _wrapped(made)

    return on_device


class _CuPy(types.ModuleType):
    """What of NumPy is in CuPy too, on arrays of the device."""

    ndarray = ndarray
    cuda = types.SimpleNamespace(is_available=lambda: True, runtime=types.SimpleNamespace(getDeviceCount=lambda: 1))

    def asarray(self, given: Any, dtype: Any = None) -> ndarray:
        host = given._host if isinstance(given, ndarray) else _memory(given) if _on_cuda(given) else np.array(given)
        return ndarray(np.asarray(host, dtype=dtype))

    def ascontiguousarray(self, given: ndarray) -> ndarray:
        return ndarray(np.ascontiguousarray(given._host))

    def from_dlpack(self, given: Any) -> ndarray:
        if not isinstance(given, ndarray) and not _on_cuda(given):
            raise TypeError("CuPy was given a tensor of the CPU")
        return self.asarray(given)

    def lexsort(self, keys: Any) -> ndarray:
        if not isinstance(keys, ndarray):
            raise TypeError("keys must be an array")
        return ndarray(np.lexsort(keys._host))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found, signature = getattr(np, name), None
        if _real_cupy is not None:
            theirs = getattr(_real_cupy, name)
            try:
                signature = inspect.signature(theirs)
            except (TypeError, ValueError):
                signature = None
        return found if isinstance(found, type) or not callable(found) else _on_host(found, signature)


_real_cupy: Any = importlib.import_module("cupy") if importlib.util.find_spec("cupy") else None
cupy: Any = _CuPy("cupy")


# cuDF


class ListDtype(pd.api.extensions.ExtensionDtype):
    """The type of a column of lists. Functions of pandas that are asked about cuDF's raise."""

    name, type = "list", "list"

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind

    def to_arrow(self) -> pa.DataType:
        return self._kind


def _is_ours(frame: types.FrameType) -> bool:
    return frame.f_code.co_filename.startswith(f"{imgcurate.__path__[0]}/")


def _forbid() -> None:
    """Refuse a call that imgcurate made: pandas itself makes it all the time."""
    if _is_ours(sys._getframe(2)):
        raise TypeError("implicit conversion of a cuDF object to the host")


class Series(pd.Series):
    __module__ = "cudf"

    def __init__(self, data: Any = None, *arguments: Any, nan_as_null: bool | None = None, **options: Any) -> None:
        if isinstance(data, ndarray):
            numbers = pa.array(data._host, from_pandas=nan_as_null)
            data = pd.arrays.ArrowExtensionArray(
                numbers.cast(pa.from_numpy_dtype(np.dtype(options.pop("dtype", numbers.type.to_pandas_dtype()))))
            )
        super().__init__(data, *arguments, **options)

    _constructor = property(lambda self: Series)
    _constructor_expanddim = property(lambda self: DataFrame)

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        _forbid()
        return super().__array__(*arguments, **options)

    def __iter__(self) -> Iterator[Any]:
        _forbid()
        return super().__iter__()

    def __arrow_array__(self, type: Any = None) -> Any:
        raise TypeError("pyarrow was given a cuDF Series; use to_arrow()")

    def to_arrow(self) -> pa.Array:
        found = pa.array(pd.Series(self), from_pandas=True)
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found

    def to_pandas(self) -> pd.Series:
        return pd.Series(self)

    def unique(self) -> Series:
        return Series(super().unique())

    @property
    def dtype(self) -> Any:
        kind = super().dtype
        lists = isinstance(kind, pd.ArrowDtype) and pa.types.is_list(kind.pyarrow_dtype)
        return ListDtype(kind.pyarrow_dtype) if lists and _is_ours(sys._getframe(1)) else kind

    @property
    def has_nulls(self) -> bool:
        return bool(self.isna().any())

    @property
    def values(self) -> Any:
        numbers = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean
        if isinstance(self.dtype, pd.ArrowDtype) and any(is_kind(self.dtype.pyarrow_dtype) for is_kind in numbers):
            if self.has_nulls:
                raise ValueError("Column must have no nulls.")
            host = self.to_arrow()
            return ndarray(host.to_numpy(zero_copy_only=not pa.types.is_boolean(host.type)))
        if isinstance(self.dtype, np.dtype) and self.dtype != object:
            return ndarray(self.to_numpy())
        _forbid()
        return super().values

    @property
    def list(self) -> Any:
        lists = self.to_arrow()
        if not pa.types.is_list(lists.type):
            raise AttributeError("Can only use .list accessor with a 'list' dtype")
        return types.SimpleNamespace(
            len=lambda: Series.from_arrow(pc.list_value_length(lists)), leaves=Series.from_arrow(lists.flatten())
        )

    @classmethod
    def from_arrow(cls, array: pa.Array) -> Series:
        return cls(pd.arrays.ArrowExtensionArray(array))

    @classmethod
    def from_pylibcudf(cls, column: Column, metadata: Any = None) -> Series:
        return cls(pd.arrays.ArrowExtensionArray(column.host), **metadata)

    def to_frame(self, name: Any = None) -> DataFrame:
        return DataFrame(pd.Series(self).to_frame(*([] if name is None else [name])))


class DataFrame(pd.DataFrame):
    __module__ = "cudf"
    _constructor = property(lambda self: DataFrame)
    _constructor_sliced = property(lambda self: Series)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> DataFrame:
        return cls(table.to_pandas(types_mapper=pd.ArrowDtype))

    def to_arrow(self, preserve_index: bool | None = None) -> pa.Table:
        table = pa.Table.from_pandas(pd.DataFrame(self), preserve_index=preserve_index)
        large = [
            field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field for field in table.schema
        ]
        table = table.cast(pa.schema(large))
        for at, field in enumerate(table.schema):
            if pa.types.is_list(field.type) and table[at].null_count == len(table):
                table = table.set_column(at, field.name, pa.nulls(len(table)))
        return table

    def to_pandas(self) -> pd.DataFrame:
        return pd.DataFrame(self)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        raise TypeError("pyarrow was given a cuDF DataFrame; use to_arrow()")


class Column:
    """pylibcudf's."""

    def __init__(self, host: pa.Array) -> None:
        self.host = host

    @classmethod
    def from_array(cls, given: Any) -> Column:
        host = given._host if isinstance(given, ndarray) else given
        if host.ndim == 1:
            return cls(pa.array(host))
        ends = pa.array(np.arange(len(host) + 1) * host.shape[1], pa.int32())
        return cls(pa.ListArray.from_arrays(ends, pa.array(host.reshape(-1))))


class Table:
    """pylibcudf's."""

    def __init__(self, columns: list[Column]) -> None:
        self._columns = columns

    def columns(self) -> list[Column]:
        return self._columns


def gather(table: Table, rows: Column, policy: Any) -> Table:
    at = rows.host.to_numpy()
    return Table([
        Column(column.host.take(pa.array(np.where(at < len(column.host), at, 0), mask=at >= len(column.host))))
        for column in table.columns()
    ])  # fmt: skip


# torch


def _on_cuda(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and getattr(tensor, "_on_cuda", False)


def _memory(tensor: torch.Tensor) -> np.ndarray:
    with torch._C.DisableTorchFunction():
        return tensor.detach().numpy()


def _mark(made: Any, on_cuda: bool) -> Any:
    for tensor in _tensors(made):
        tensor._on_cuda = on_cuda
    return made


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _is_cuda(device: Any) -> bool:
    return isinstance(device, str | torch.device) and str(device).startswith("cuda")


class _Cuda(TorchFunctionMode):
    """Notes which tensors are on the device, and refuses operations on tensors of two."""

    _ELSEWHERE = ("copy_", "__set__", "__setitem__", "__getitem__", "load_state_dict")

    def __torch_function__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        options = dict(options or {})
        name, first = getattr(function, "__name__", ""), arguments[0] if arguments else None
        owner = getattr(getattr(function, "__self__", None), "__name__", "")
        if name == "__get__" and owner in ("device", "is_cuda"):
            return {"device": _CUDA if _on_cuda(first) else torch.device("cpu"), "is_cuda": _on_cuda(first)}[owner]
        if name == "__set__" and owner == "data":
            first._on_cuda = _on_cuda(arguments[1])
            return function(*arguments, **options)
        if name in ("numpy", "__array__") and _on_cuda(first):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        if name == "_has_compatible_shallow_copy_type":
            return True
        if name == "pin_memory":
            return first
        if name == "cpu":
            return _mark(first.detach().clone(), False)
        if name == "to":
            places = [one for one in (*arguments[1:], options.get("device")) if isinstance(one, str | torch.device)]
            target = _is_cuda(places[0]) if places else _on_cuda(first)
            arguments = tuple("cpu" if _is_cuda(one) else one for one in arguments)
            options |= {"device": "cpu"} if _is_cuda(options.get("device")) else {}
            made = function(*arguments, **options)
            return _mark(made.detach().clone() if made is first and target != _on_cuda(first) else made, target)
        if options.get("device") is not None:
            target = _is_cuda(options["device"])
            return _mark(function(*arguments, **options | ({"device": "cpu"} if target else {})), target)
        given = [*_tensors(arguments), *_tensors(options)]
        if len({_on_cuda(tensor) for tensor in given if tensor.dim()}) > 1 and name not in self._ELSEWHERE:
            raise RuntimeError(f"Expected all tensors to be on the same device ({name})")
        made = function(*arguments, **options)
        return _mark(made, True) if any(map(_on_cuda, given)) else made


_mode = _Cuda()


def _without_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function during which nothing is on a GPU, as when weights are read."""

    @functools.wraps(function)
    def plain(*arguments: Any, **options: Any) -> Any:
        if not torch._C._len_torch_function_stack():
            return function(*arguments, **options)
        _mode.__exit__(None, None, None)
        try:
            return function(*arguments, **options)
        finally:
            _mode.__enter__()

    return plain


def _from_dlpack(given: Any, plain: Callable[..., torch.Tensor] = torch.from_dlpack) -> torch.Tensor:
    return _mark(plain(given._host), True) if isinstance(given, ndarray) else plain(given)


# The cluster


class _Future:
    """A result that is there."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def result(self) -> Any:
        return self._content

    def add_done_callback(self, function: Callable[[Any], None]) -> None:
        function(self)


class _Client:
    """A cluster of one worker, in this process."""

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *exception: Any) -> None:
        dask.config.set({"dataframe.backend": "pandas"})

    def run(self, function: Callable[[], Any], on_error: str = "raise") -> dict[str, Any]:
        return {"here": function()}

    def compute(self, tasks: list[Any]) -> list[Any]:
        return [_Future(result) for result in dask.compute(*tasks)]

    def nthreads(self) -> dict[str, int]:
        return {"here": 1}

    ncores = nthreads

    def scheduler_info(self, n_workers: int = -1) -> Any:
        return {"workers": {"here": {}}}


_client = _Client()


def _connect(*_: Any, **__: Any) -> _Client:
    dask.config.set({"dataframe.backend": "cudf"})
    return _client


class KMeans:
    """cuML's."""

    def __init__(self, *, client: Any, n_clusters: int, init: str, max_iter: int, random_state: int) -> None:
        from sklearn.cluster import KMeans as OnHost

        self._model = OnHost(n_clusters, init=init, n_init=1, max_iter=max_iter, random_state=random_state)

    def fit(self, sample: Any) -> KMeans:
        self.cluster_centers_ = ndarray(self._model.fit(sample.compute()._host).cluster_centers_)
        return self


def _read_parquet(*arguments: Any, plain: Callable[..., Any] = dd.read_parquet, **options: Any) -> Any:
    backend = cluster.backend()
    with dask.config.set({"dataframe.backend": "pandas"}):
        return vectors.to_backend(plain(*arguments, **options), backend)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    cudf, pylibcudf, cuml = (types.ModuleType(name) for name in ("cudf", "pylibcudf", "cuml.dask.cluster"))
    vars(cudf).update(Series=Series, DataFrame=DataFrame, Index=pd.Index, from_pandas=lambda index: index)
    nullify = types.SimpleNamespace(NULLIFY=1)
    copying = types.SimpleNamespace(gather=gather, OutOfBoundsPolicy=nullify)
    vars(pylibcudf).update(Column=Column, Table=Table, copying=copying)
    vars(cuml).update(KMeans=KMeans)
    modules = {"cupy": cupy, "cudf": cudf, "pylibcudf": pylibcudf, "cuml.dask.cluster": cuml}
    sys.modules |= modules | {name: types.ModuleType(name) for name in ("cuml", "cuml.dask")}
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    # Dask looks up what to do with an object by the name of its package; these are pandas' and NumPy's.
    for dispatch in [thing for thing in gc.get_objects() if type(thing) is Dispatch]:
        for name in ("cudf", "cupy"):
            dispatch._lazy.pop(name, None)
    pd.Index.to_pandas = lambda self: self
    dd.read_parquet = _read_parquet
    cluster.gpu_available = lambda: True
    cluster.connect = imgcurate.connect = _connect
    distributed.get_client = lambda: _client
    cluster.check_paths = lambda *_: None  # there is one process
    steps.Steps.watch = lambda self, function: function()  # and one thread, which knows what stands in for CUDA
    torch.from_dlpack = _from_dlpack
    torch.Tensor.record_stream = lambda self, stream: None
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.synchronize = lambda device=None: None
    pretrained = transformers.PreTrainedModel
    pretrained.from_pretrained = classmethod(_without_mode(pretrained.from_pretrained.__func__))
    dask.config.set(scheduler="synchronous")
    _mode.__enter__()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in _OTHERS_WORK:
            item.add_marker(pytest.mark.skip(reason="is about cuDF or a cluster themselves"))
