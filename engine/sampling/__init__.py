"""Sampling: time grids, noise, known latents, guidance plans and the Euler loop."""
