"""The type of a model's weights and activations; the loop keeps its latents in float32 whatever it is."""

from __future__ import annotations

import torch

from ..model import DDiT

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def cast(model: DDiT, dtype: torch.dtype) -> DDiT:
    """A model whose parameters are those of ``model`` in ``dtype``; the same model if they are already.

    Buffers stay as they are: rotary frequencies in half precision would turn far positions.
    """
    if all(parameter.dtype == dtype for parameter in model.parameters()):
        return model
    with torch.device("meta"):
        made = DDiT(model.config)
    state = {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
    made.load_state_dict(state | dict(model.named_buffers()), assign=True)
    return made.train(model.training).requires_grad_(False)
