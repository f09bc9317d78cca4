"""What a run's folder holds: its tables and record, who works in it, and how what is asked for differs from what is there."""
