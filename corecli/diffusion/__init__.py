"""Noise schedules, training objectives, guidance and samplers."""
