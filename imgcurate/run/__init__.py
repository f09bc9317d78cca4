"""The whole job: its options and what depends on them, its folder, its steps, and the account of every image."""
