"""Machinery that metrics and probes share."""
