"""Runs: processes, resumption, schedules, optimizers, averages, progress; independent of methods and generators."""
