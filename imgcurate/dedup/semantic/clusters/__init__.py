"""Clusters: k-means, to which ones a row goes, how the rows of each come together, in memory or in files, and are compared."""
