"""Contact sheets, plots and embeddings."""
