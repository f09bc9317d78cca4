"""Parquet whose rows name images, as what a run reads."""

from imgcurate.sources.references.found import find_references
from imgcurate.sources.references.listed import list_references
from imgcurate.sources.references.table import EXTENSIONS, References

__all__ = ["EXTENSIONS", "References", "find_references", "list_references"]
