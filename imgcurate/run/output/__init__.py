"""What a run makes, each step from what those before it made: columns, decisions, shards or files, and the account of every image."""
