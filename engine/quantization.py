"""Weights of linear layers in 8 bits, by torchao: whole numbers with a scale for every output channel.

    W[n, k] = scale[n] Q[n, k]

Weight-only: products are computed in the type of the activations, to which a layer converts its own weights when it
computes. Quantized are the linear layers of the blocks (of the d-DiT with its bridges, and of the text encoder);
embeddings, the first and last layers, norms, biases and codecs keep their type.
"""

from __future__ import annotations

import copy
import importlib
import logging
import re
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .validation import refuse

M = TypeVar("M", bound=nn.Module)

SCHEMES = ("int8_weight_only",)  # by their names in torchao
IN_A_BLOCK = re.compile(r"\.\d+\.")


def check_scheme(name: object) -> None:
    """Raise ``ValueError`` for an unknown scheme, and where torchao is missing."""
    if name not in SCHEMES:
        refuse("quantization", name, f"one of {', '.join(SCHEMES)}, or None")
    _torchao()


def quantized(module: M) -> M:
    """A module that shares all of ``module`` but the weights of the linear layers of its blocks, which are quantized.

    On the meta device their shapes are.
    """
    tensors = (*module.parameters(), *module.buffers())
    made = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    for name, layer in made.named_modules():
        if isinstance(layer, nn.Linear) and IN_A_BLOCK.search(name):
            layer.weight = nn.Parameter(_quantize(layer.weight.detach()), requires_grad=False)
    return made


def is_quantized(module: nn.Module) -> bool:
    """Whether a weight of the module is quantized."""
    return any(map(is_traceable_wrapper_subclass, module.parameters()))


def converted(tensor: Tensor, form: Tensor) -> Tensor:
    """A tensor in the type of another one, and quantized where that is."""
    tensor = tensor.to(form.dtype)
    return _quantize(tensor) if is_traceable_wrapper_subclass(form) else tensor


def stored_bytes(tensor: Tensor) -> int:
    """The bytes of a tensor, of a quantized one those of its numbers and scales."""
    if not is_traceable_wrapper_subclass(tensor):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(stored_bytes(getattr(tensor, name)) for name in names)


@torch.inference_mode(False)
def _quantize(weight: Tensor) -> Tensor:
    torchao = _torchao()
    return torchao.Int8Tensor.from_hp(weight, torchao.PerRow())


@cache
def _torchao() -> Any:
    """torchao's quantization, imported without its warnings about extensions for GPUs. Raises ``ValueError``."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        return importlib.import_module("torchao.quantization")
    except ImportError:
        raise ValueError("quantization needs torchao; install it with pip install 'syncflow[quantization]'") from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
