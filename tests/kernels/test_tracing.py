"""What a compiler sees of the operations on a GPU that is not there: Triton launches, traced with fake tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from syncflow import kernels
from syncflow.kernels.launch.language import INSTALLED

SCRIPT = """
import json
import torch
from torch._functorch._aot_autograd.functional_utils import from_fun, to_fun
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from syncflow import kernels
from syncflow.kernels.launch import interpreted

assert not interpreted()


class Of:
    def __init__(self, *shape, dtype=torch.bfloat16):
        self.shape, self.dtype = shape, dtype


F32, I64, CODES = torch.float32, torch.int64, torch.float8_e4m3fn
x, table, rows = Of(2, 8, 256, 1152), Of(6, 1152), Of(2, 1, 6, 1152)
qkv, weight, q, text = Of(2, 8, 256, 3, 16, 72), Of(72), Of(2, 2048, 16, 72), Of(1, 300, 16, 72)
sound, time = Of(2, 100, 16, 72), Of(2, 1, 16, 72)
step = Of(1, 4, 8, 32, 32, dtype=F32), Of(2, 4, 8, 32, 32), Of(1, 2, dtype=I64), Of(1, 2, dtype=F32)
ARGUMENTS = {
    "modulated_layer_norm": (x, table, rows, 0, 1e-6),
    "modulated_layer_norm_fp8": (x, table, rows, 0, 1e-6),
    "gated_residual": (x, x, table, rows, 0),
    "gated_residual_norm": (x, x, table, rows, 0, table, 3, 1e-6),
    "spatial_attention": (qkv, weight, weight, 1e-6),
    "temporal_attention": (qkv, weight, weight, Of(8, 36, 2, dtype=F32), 1e-6),
    "text_cross_attention": (q, text, text, Of(1, dtype=I64), Of(2, dtype=I64)),
    "rope_cross_attention": (sound, q, q, Of(100, dtype=F32), Of(2048, dtype=F32), Of(36, dtype=F32), -1.0,
                             Of(2, dtype=I64), time, time),
    "guided_euler_step": (*step, Of(1, dtype=F32), None, None, None, None, torch.bfloat16),
    "linear_gelu": (x, Of(4608, 1152), Of(4608)),
    "gated_linear": (x, Of(1152, 1152), Of(1152), x, table, rows, 0),
    "fp8_linear": (Of(4096, 1152, dtype=CODES), Of(4096, dtype=F32), Of(3456, 1152, dtype=CODES), Of(3456, dtype=F32),
                   Of(3456), False),
}


def launched(name):
    leaves, spec = tree_flatten(ARGUMENTS[name])
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Of)]

    def call(*tensors):
        filled = list(leaves)
        with FunctionalTensorMode():
            for place, tensor in zip(places, map(to_fun, tensors)):
                filled[place] = tensor
            return tree_map(from_fun, getattr(kernels, name)(*tree_unflatten(filled, spec)))

    with FakeTensorMode(), torch.no_grad(), kernels.implementation("triton"):
        tensors = [torch.empty(leaves[i].shape, dtype=leaves[i].dtype, device="cuda") for i in places]
        graph = make_fx(call)(*tensors)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert not any(target.startswith("syncflow") for target in targets), targets
    return sum("triton_kernel_wrapper" in target for target in targets)


print(json.dumps({name: launched(name) for name in ARGUMENTS}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs triton")
def test_the_compiler_traces_through_to_the_kernels():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    launches = json.loads(done.stdout)
    assert sorted(launches) == sorted(n for n in kernels.__all__ if hasattr(getattr(kernels, n), "plan_launches"))
    assert launches.pop("rope_cross_attention") == 2, "its keys are long: the attention of their parts, then the sum"
    assert all(count == 1 for count in launches.values()), launches
