"""Operations of the d-DiT: tensor in, tensor out, one file each. This room knows no model."""

# transformers probes for a distribution called ``kernels``. Where the root of the repository is on the path it finds
# this folder, imports it and reads its version; an operation registered a second time would unload the first.
__version__ = "0"

if "." in __name__:
    from .gated_residual import gated_residual
    from .guided_euler_step import guided_euler_step
    from .modulated_layer_norm import modulated_layer_norm
    from .rope_cross_attention import rope_cross_attention
    from .spatial_attention import spatial_attention
    from .temporal_attention import temporal_attention
    from .text_cross_attention import text_cross_attention

__all__ = [
    "gated_residual",
    "guided_euler_step",
    "modulated_layer_norm",
    "rope_cross_attention",
    "spatial_attention",
    "temporal_attention",
    "text_cross_attention",
]
