"""Experiments: data sets, a resumable trainer and the comparison that `make demo` runs; scripts, no API."""
