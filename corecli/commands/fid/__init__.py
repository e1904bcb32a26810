"""The verb `fid`."""
