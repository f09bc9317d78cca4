"""Work that is large against memory: tables in files that processes map, and tasks in waves."""
