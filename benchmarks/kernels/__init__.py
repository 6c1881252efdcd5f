"""Benchmarks of operations: their real shapes, what their kernels take of a GPU, their time beside baselines."""
