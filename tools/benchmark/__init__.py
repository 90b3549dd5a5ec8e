"""Measures the trainer side by side with its peers; see `docs/benchmarks.md`."""
