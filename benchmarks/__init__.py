"""Benchmarks of dctps_ext against what it replaces; each runs as `python -m benchmarks.<name>`."""
