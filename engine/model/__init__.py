"""The dual diffusion transformer (d-DiT): a video tower, an audio tower and the adaptors between them."""

from .ddit import DDiT

__all__ = ["DDiT"]
