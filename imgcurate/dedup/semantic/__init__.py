"""Semantic duplicates: normalise, cluster, assign, exchange, screen, join, each step a file."""
