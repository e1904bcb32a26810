"""The verbs: one file or package each, with its options (Config), `check` and `run`."""
