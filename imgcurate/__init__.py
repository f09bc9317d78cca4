"""Curate image and image-text datasets as Dask dataframes, on GPUs or on CPU cores.

One image is one row. Read shards, add columns, keep rows with predicates, drop near-duplicates, write shards whose bytes are
the originals.
"""

import sys
from importlib.metadata import PackageNotFoundError, version

import dask
import lazy_loader

# Each verb is imported when it is first used, because what they stand on takes seconds to import. ``__init__.pyi`` says where each is.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = version("imgcurate")
except PackageNotFoundError:  # run from a folder that was not installed
    __version__ = "unknown"

# Where the user has not chosen. Dask's P2P shuffle fails on a column of lists ("data type 'list<...>[pyarrow]' not understood"), so that a merge or
# sort of a frame with embeddings would fail; cuml.dask sets the same default. And Dask makes a text type of its own of pandas' ``str``, in which a
# missing text is `pandas.NA`, whose truth is an error; of a merge of the two it warns. And it makes text of lists and arrays in a column of objects.
dask.config.update_defaults({"dataframe": {"shuffle": {"method": "tasks"}, "convert-string": False}})

# Before Python 3.11.9, Dask's profiler can stop a worker for ever: it asks for all threads' frames, a garbage collection comes between, and a thread
# that begins waits for both (python/cpython issue 106883, dask/distributed issue 8616). Workers of clusters that start from here on are without it.
if sys.version_info < (3, 11, 9):
    dask.config.set({"distributed.worker.profile.enabled": False})
