"""One file per sampler; the folder is the registry."""
