"""Semantic duplicates: a frame is normalised, its rows placed in clusters, those of each screened and joined; a corpus of older ones; the ground truth."""
