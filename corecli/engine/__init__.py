"""The run: processes, resumption, schedules, optimizers, progress. Knows no method and no generator."""
