"""Machinery that families share."""
