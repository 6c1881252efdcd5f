"""The passes of a d-DiT as CUDA graphs: each shape is captured once and then replayed with one launch."""
