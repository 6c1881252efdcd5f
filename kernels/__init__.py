"""Operations of the d-DiT: tensor in, tensor out, one file each. Nothing here knows the model."""

# transformers probes for a distribution called ``kernels``. Where the root of the repository is on the path it finds
# this folder, imports it and reads its version; an operation registered a second time would unload the first.
__version__ = "0"

if "." in __name__:
    from .fp8_linear import fp8_linear
    from .gated_linear import gated_linear
    from .gated_residual import gated_residual
    from .gated_residual_norm import gated_residual_norm
    from .guided_euler_step import guided_euler_step
    from .launch import implementation
    from .linear import linear, patch_embedding
    from .linear_gelu import linear_gelu
    from .modulated_layer_norm import modulated_layer_norm
    from .modulated_layer_norm_fp8 import modulated_layer_norm_fp8
    from .reference_ops import rope_table
    from .rope_cross_attention import rope_cross_attention
    from .spatial_attention import spatial_attention
    from .temporal_attention import temporal_attention
    from .text_cross_attention import text_cross_attention

__all__ = [
    "fp8_linear",
    "gated_linear",
    "gated_residual",
    "gated_residual_norm",
    "guided_euler_step",
    "implementation",
    "linear",
    "linear_gelu",
    "modulated_layer_norm",
    "modulated_layer_norm_fp8",
    "patch_embedding",
    "rope_cross_attention",
    "rope_table",
    "spatial_attention",
    "temporal_attention",
    "text_cross_attention",
]
