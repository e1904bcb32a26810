"""The metrics of `corecli fid`, one per file; `parts/metric.py` says what a file declares."""
