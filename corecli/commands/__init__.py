"""One verb per file: its Config is its whole interface, its run() tells its whole story."""
