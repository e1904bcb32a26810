"""Code that formats share."""
