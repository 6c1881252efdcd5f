"""Runtimes that compute the passes of a d-DiT: exported graphs, CUDA graphs, compiled modules, native blocks."""
