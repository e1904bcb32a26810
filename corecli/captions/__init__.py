"""Caption backends: every module of this folder writes captions of concepts; `parts` holds what they share."""
