"""Curate image and image-text datasets as Dask dataframes, on GPUs or on CPU cores.

One image is one row. Read shards, add columns, keep rows with predicates, drop near-duplicates, write shards whose bytes are
the originals.
"""

from importlib.metadata import PackageNotFoundError, version

from imgcurate.cluster import connect, keep_pandas_types, prefer_task_shuffle
from imgcurate.dedup import (
    Duplicates,
    decontaminate,
    exact_duplicates,
    perceptual_duplicates,
    remove,
    save_embeddings,
    semantic_duplicates,
)
from imgcurate.encoders.embed import embed
from imgcurate.encoders.text import encode_text
from imgcurate.measures import measure
from imgcurate.parts import checkpoint
from imgcurate.scores.aesthetic import score_aesthetic
from imgcurate.scores.fraction import top_fraction
from imgcurate.scores.nsfw import score_nsfw
from imgcurate.scores.text import score_prompts, score_text
from imgcurate.sinks.parquet import write_parquet
from imgcurate.sinks.webdataset import write_webdataset
from imgcurate.sources.files import read_files
from imgcurate.sources.parquet import read_parquet
from imgcurate.sources.webdataset import read_webdataset
from imgcurate.vectors import to_matrix

__all__ = [
    "Duplicates",
    "checkpoint",
    "connect",
    "decontaminate",
    "embed",
    "encode_text",
    "exact_duplicates",
    "measure",
    "perceptual_duplicates",
    "read_files",
    "read_parquet",
    "read_webdataset",
    "remove",
    "save_embeddings",
    "score_aesthetic",
    "score_nsfw",
    "score_prompts",
    "score_text",
    "semantic_duplicates",
    "to_matrix",
    "top_fraction",
    "write_parquet",
    "write_webdataset",
]

try:
    __version__ = version("imgcurate")
except PackageNotFoundError:  # run from a folder that was not installed
    __version__ = "unknown"

prefer_task_shuffle()
keep_pandas_types()
