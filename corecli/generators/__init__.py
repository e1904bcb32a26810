"""One file per generator family; the folder is the registry."""
