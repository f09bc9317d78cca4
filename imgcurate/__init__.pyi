# Where each name of imgcurate is: for type checkers and editors, and for `__init__.py`, which imports it when it is used.
from . import schema as schema
from . import tar as tar
from .cluster import connect as connect
from .dedup import Duplicates as Duplicates
from .dedup import decontaminate as decontaminate
from .dedup import exact_duplicates as exact_duplicates
from .dedup import perceptual_duplicates as perceptual_duplicates
from .dedup import remove as remove
from .dedup import save_embeddings as save_embeddings
from .dedup import semantic_duplicates as semantic_duplicates
from .encoders.embed import embed as embed
from .encoders.text import encode_text as encode_text
from .flags import flag as flag
from .measures import measure as measure
from .nearest.outliers import outliers as outliers
from .nearest.query import search as search
from .nearest.search import neighbours as neighbours
from .parts import checkpoint as checkpoint
from .run.curate import curate as curate
from .scores.aesthetic import score_aesthetic as score_aesthetic
from .scores.fraction import top_fraction as top_fraction
from .scores.nsfw import score_nsfw as score_nsfw
from .scores.text import score_prompts as score_prompts
from .scores.text import score_text as score_text
from .sinks.convert import convert_shards as convert_shards
from .sinks.files import write_files as write_files
from .sinks.parquet import write_parquet as write_parquet
from .sinks.webdataset import write_webdataset as write_webdataset
from .sources.embeddings import read_embeddings as read_embeddings
from .sources.files import read_files as read_files
from .sources.parquet import read_parquet as read_parquet
from .sources.webdataset import read_webdataset as read_webdataset
from .vectors import to_matrix as to_matrix

__version__: str
