"""The passes of a d-DiT as CUDA graphs: recorded once for a shape, replayed in one call of the driver."""
