"""Machinery that formats share."""
