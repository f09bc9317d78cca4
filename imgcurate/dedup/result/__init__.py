"""What deduplication found, and what a person asks next: other thresholds, pages, recall, a folder to keep it in."""

from imgcurate.dedup.result.duplicates import Duplicates
from imgcurate.dedup.result.thresholds import check_eps

__all__ = ["Duplicates", "check_eps"]
