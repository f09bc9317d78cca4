"""Duplicates by content: equal bytes, and pictures that look alike."""
