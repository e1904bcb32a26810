"""corecli: composable verbs that let image encoders and image generators improve each other."""

__version__ = "0.1.0"
