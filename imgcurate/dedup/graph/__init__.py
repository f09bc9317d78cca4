"""The graph of similar pairs: its order, its rules, and the names of its nodes."""
