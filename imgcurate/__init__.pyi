from . import schema, tar
from .cluster import connect
from .dedup import (
    Duplicates,
    decontaminate,
    exact_duplicates,
    perceptual_duplicates,
    remove,
    save_embeddings,
    semantic_duplicates,
)
from .encoders.embed import embed
from .encoders.text import encode_text
from .measures import measure
from .parts import checkpoint
from .run.curate import curate
from .scores.aesthetic import score_aesthetic
from .scores.fraction import top_fraction
from .scores.nsfw import score_nsfw
from .scores.text import score_prompts, score_text
from .sinks.parquet import write_parquet
from .sinks.webdataset import write_webdataset
from .sources.files import read_files
from .sources.parquet import read_parquet
from .sources.webdataset import read_webdataset

__version__: str

__all__ = [
    "Duplicates",
    "checkpoint",
    "connect",
    "curate",
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
    "schema",
    "score_aesthetic",
    "score_nsfw",
    "score_prompts",
    "score_text",
    "semantic_duplicates",
    "tar",
    "top_fraction",
    "write_parquet",
    "write_webdataset",
]
