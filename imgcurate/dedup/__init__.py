"""Duplicates: finding them by embedding, by look and by content, and dropping rows by id."""

from imgcurate.dedup.content.verbs import exact_duplicates, perceptual_duplicates
from imgcurate.dedup.decontaminate import decontaminate
from imgcurate.dedup.leaks import leaks
from imgcurate.dedup.removal import remove
from imgcurate.dedup.result import Duplicates
from imgcurate.dedup.semantic.corpus import save_embeddings
from imgcurate.dedup.semantic.search import semantic_duplicates

__all__ = [
    "Duplicates",
    "decontaminate",
    "exact_duplicates",
    "leaks",
    "perceptual_duplicates",
    "remove",
    "save_embeddings",
    "semantic_duplicates",
]
