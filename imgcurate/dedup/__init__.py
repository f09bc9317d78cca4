"""Duplicates: finding them by embedding, by look and by content, and dropping rows by id."""

from imgcurate.dedup.corpus import save_embeddings
from imgcurate.dedup.decontaminate import decontaminate
from imgcurate.dedup.duplicates import Duplicates
from imgcurate.dedup.removal import remove
from imgcurate.dedup.semantic import semantic_duplicates
from imgcurate.dedup.stored import exact_duplicates, perceptual_duplicates

__all__ = [
    "Duplicates",
    "decontaminate",
    "exact_duplicates",
    "perceptual_duplicates",
    "remove",
    "save_embeddings",
    "semantic_duplicates",
]
