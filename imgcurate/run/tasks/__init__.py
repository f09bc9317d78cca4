"""Tasks of a run on the cluster: a few at a time, how far they are, and what is done where they stand still or die."""
