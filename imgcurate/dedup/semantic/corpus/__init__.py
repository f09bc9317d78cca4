"""A corpus that new images are compared with and that is kept whole: a frame, or embeddings saved cluster by cluster."""

from imgcurate.dedup.semantic.corpus.against import FrameCorpus, SavedCorpus, open_corpus, saved_corpus
from imgcurate.dedup.semantic.corpus.files import Part, is_saved, read_part
from imgcurate.dedup.semantic.corpus.save import save_embeddings

__all__ = [
    "FrameCorpus",
    "Part",
    "SavedCorpus",
    "is_saved",
    "open_corpus",
    "read_part",
    "save_embeddings",
    "saved_corpus",
]
