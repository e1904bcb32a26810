"""Floor 0: errors, files, randomness, configuration, checkpoints. Imports no torch at module level."""
