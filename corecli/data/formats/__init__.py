"""One file per image-set format; the folder is the registry."""
