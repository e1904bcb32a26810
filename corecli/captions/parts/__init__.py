"""Machinery that backends share."""
