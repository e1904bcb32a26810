"""One file per representation-learning method; the folder is the registry."""
