"""Machinery that methods share."""
