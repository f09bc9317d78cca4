"""Near-duplicates: finding them by embedding, and dropping rows by id."""

from imgcurate.dedup.duplicates import Duplicates
from imgcurate.dedup.removal import remove
from imgcurate.dedup.semantic import semantic_duplicates

__all__ = ["Duplicates", "remove", "semantic_duplicates"]
