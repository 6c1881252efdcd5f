"""Who computes the passes of a d-DiT: graphs of other runtimes, CUDA graphs, compiled modules."""
