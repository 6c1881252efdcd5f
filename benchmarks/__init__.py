"""Benchmarks: pytest-benchmark suites (``make bench``), the report of their results, and the counting of work."""
