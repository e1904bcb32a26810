"""Arrays in, numbers out; one file per metric."""
