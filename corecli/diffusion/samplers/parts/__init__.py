"""Machinery that samplers share."""
