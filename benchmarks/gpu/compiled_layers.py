"""The baseline of ``torch.compile``: every kind of layer compiled once, for all layers of its kind.

Compiling a whole pass takes minutes at full size. A layer is traced as a whole (``fullgraph``); its index becomes a
symbol at its second value, so the number of graphs does not depend on the depth. Beyond PyTorch's limit of
recompilations it would silently run without compilation: here that is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch.fx import GraphModule

from ...engine.model.audio import AudioLayer, ModalityAdaptor
from ...engine.model.stdit import STDiTBlock
from ...kernels.launch import implementation

LAYERS: tuple[type[torch.nn.Module], ...] = (STDiTBlock, AudioLayer, ModalityAdaptor)


class CompiledLayers(ExitStack):
    """Within a ``with`` block the layers of every model run compiled; ``graphs`` counts the compilations.

    ``mode`` as in ``torch.compile``, or "trace": PyTorch's eager operations, as the graphs list them.
    """

    def __init__(self, mode: str | None) -> None:
        super().__init__()
        self.mode, self.graphs = mode, 0

    def __enter__(self) -> CompiledLayers:
        super().__enter__()
        torch._dynamo.reset()
        self.enter_context(implementation("reference"))  # plain PyTorch, which the compiler fuses
        self.enter_context(torch._dynamo.config.patch(fail_on_recompile_limit_hit=True))
        for layer in LAYERS:
            plain = layer.forward
            self.callback(setattr, layer, "forward", plain)
            setattr(layer, "forward", torch.compile(plain, fullgraph=True, backend=self._compile))  # noqa: B010
        return self

    def _compile(self, graph: GraphModule, example: list[Any]) -> Callable[..., Any]:
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        self.graphs += 1
        if self.mode == "trace":
            return graph
        patches = None if self.mode is None else list_mode_options(self.mode)
        return cast("Callable[..., Any]", compile_fx(graph, example, config_patches=patches))
