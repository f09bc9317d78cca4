"""A smaller set that stands for the whole."""
