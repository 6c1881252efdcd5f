"""One Euler step of every request along the weighted sum of its branches' velocities, with known latents put back.

    z'[b] = z[b] + dt[b] * sum_g weights[b, g] * v[rows[b, g]]
    z'[b] = known[b] * t[b] + noise[b] * (1 - t[b])   where mask[b] is true

z (B, ...) latents of one modality; v (R, ...) velocities of all rows; rows (B, G) int, weights (B, G) float (a request
with fewer branches has weight 0 there; a branch of weight 0 is not read and may hold anything); dt (B,). Known latents:
known and noise (B, ...), mask bool broadcastable to z, t (B,) the flow time to put them at (1 = clean); or all four
None. -> [the new latents in z's dtype, summed in at least float32]; with ``dtype`` also their copy in it, which the
next forward pass reads. Source: rectified flow with guidance as a linear combination of branches (SyncFlow section 3.1
and Eq. 3).

Video and audio take a call and a launch each. One launch for both would need every argument twice and save about 2 us
of a step that takes milliseconds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import native
from .launch import Launch, operation, supported, tiles, tl, triton
from .launch.launching import DTYPES


def reference(
    z: Tensor,
    v: Tensor,
    rows: Tensor,
    weights: Tensor,
    dt: Tensor,
    known: Tensor | None = None,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
    t: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """The guided step, then the known part at its own time."""
    wide = torch.promote_types(z.dtype, torch.float32)

    def per_request(x: Tensor) -> Tensor:
        return x.to(wide).reshape(-1, *[1] * (z.ndim - 1))

    def weighted(weight: Tensor, branch: Tensor) -> Tensor:
        return weight * torch.where(weight != 0, branch.to(wide), 0)

    velocity = sum(weighted(per_request(weights[:, g]), v[rows[:, g]]) for g in range(rows.shape[1]))
    stepped = z.to(wide) + per_request(dt) * velocity
    if known is not None and noise is not None and mask is not None and t is not None:
        time = per_request(t)
        stepped = torch.where(mask, known.to(wide) * time + noise.to(wide) * (1 - time), stepped)
    return _with_copy(stepped.to(z.dtype), dtype)


def cpu(
    z: Tensor,
    v: Tensor,
    rows: Tensor,
    weights: Tensor,
    dt: Tensor,
    known: Tensor | None = None,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
    t: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """The same in one pass over latents without a known part."""
    stepped = native.guided_step(z, v, rows, weights, dt) if known is None else None
    if stepped is None:
        return reference(z, v, rows, weights, dt, known, noise, mask, t, dtype)
    return _with_copy(stepped, dtype)


def _with_copy(latents: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    return [latents] if dtype is None else [latents, latents.to(dtype, copy=True)]


@triton.jit
def guided_euler_step_kernel(
    z,
    v,
    rows,
    weights,
    dt,
    known,
    noise,
    mask,
    t,
    out,
    copy,
    size,
    s_row,
    n_2,
    n_3,
    n_4,
    s_0,
    s_1,
    s_2,
    s_3,
    s_4,
    BRANCHES: tl.constexpr,
    KNOWN: tl.constexpr,
    COPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK of the ``size`` latent values of one request.

    s_row is the stride of ``v`` between rows, n_2 to n_4 are the sizes of the last three axes of five, s_0 to s_4 the
    strides of ``mask`` over all five.
    """
    i_program = tl.program_id(0)
    blocks = tl.cdiv(size, BLOCK)
    i_request = (i_program // blocks).to(tl.int64)
    o_value = (i_program % blocks) * BLOCK + tl.arange(0, BLOCK)
    m_value = o_value < size
    first = i_request * size
    velocity = tl.zeros((BLOCK,), tl.float32)
    for g in tl.static_range(BRANCHES):
        weight = tl.load(weights + i_request * BRANCHES + g).to(tl.float32)
        i_row = tl.load(rows + i_request * BRANCHES + g).to(tl.int64)
        end = tl.where(weight != 0, size, 0)
        branch = tl.load(v + i_row * s_row + o_value, mask=o_value < end, other=0.0)
        velocity += weight * branch.to(tl.float32)
    latent = tl.load(z + first + o_value, mask=m_value, other=0.0).to(tl.float32)
    latent += tl.load(dt + i_request).to(tl.float32) * velocity
    if KNOWN:
        time = tl.load(t + i_request).to(tl.float32)
        clean = tl.load(known + first + o_value, mask=m_value, other=0.0).to(tl.float32)
        noisy = tl.load(noise + first + o_value, mask=m_value, other=0.0).to(tl.float32)
        o_mask = (o_value % n_4) * s_4 + (o_value // n_4 % n_3) * s_3 + (o_value // (n_4 * n_3) % n_2) * s_2
        o_mask += (o_value // (n_4 * n_3 * n_2)) * s_1
        is_known = tl.load(mask + i_request * s_0 + o_mask, mask=m_value, other=0)
        latent = tl.where(is_known != 0, clean * time + noisy * (1 - time), latent)
    rounded = latent.to(out.dtype.element_ty)
    tl.store(out + first + o_value, rounded, mask=m_value)
    if COPY:
        tl.store(copy + first + o_value, rounded.to(copy.dtype.element_ty), mask=m_value)


def plan_launches(
    z: Tensor,
    v: Tensor,
    rows: Tensor,
    weights: Tensor,
    dt: Tensor,
    known: Tensor | None = None,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
    t: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[list[Tensor], list[Launch]] | None:
    """One launch of 512 values a program, four of float32 or 16 bytes a thread.

    At batch 1 the video of the full-size model has 32768 values; larger programs would leave more than half of the GPU
    idle.
    """
    floats = (z, v, weights, dt, known, noise, t)
    if z.ndim > 5 or not rows.shape[1] or dtype not in (None, *DTYPES):
        return None
    if not all(supported(x) for x in floats if x is not None):
        return None
    out = [z.new_empty(z.shape)] + ([] if dtype is None else [z.new_empty(z.shape, dtype=dtype)])
    heuristic = {"BLOCK": 512, "num_warps": 4, "num_stages": 1}
    choice = tiles.choose("guided_euler_step", heuristic, dtype=z.dtype)
    has_known = known is not None and noise is not None and mask is not None and t is not None
    if known is None or noise is None or mask is None or t is None:
        known, noise, mask, t = z, z, z, dt  # not read
    absent = [1] * (5 - z.ndim)
    sizes = [z.shape[0], *absent, *z.shape[1:]]
    strides = mask.expand(z.shape).stride()
    strides = (strides[0], *[0 for _ in absent], *strides[1:])
    size, v = z.numel() // max(z.shape[0], 1), _contiguous_rows(v)
    launch = Launch(
        guided_euler_step_kernel,
        (z.shape[0] * -(-size // choice["BLOCK"]),),
        {
            "z": z.contiguous(),
            "v": v,
            "rows": rows.contiguous(),
            "weights": weights.contiguous(),
            "dt": dt.contiguous(),
            "known": known.contiguous(),
            "noise": noise.contiguous(),
            "mask": mask,
            "t": t.contiguous(),
            "out": out[0],
            "copy": out[-1],
            "size": size,
            "s_row": v.stride(0),
            **{f"n_{axis}": sizes[axis] for axis in (2, 3, 4)},
            **{f"s_{axis}": stride for axis, stride in enumerate(strides)},
        },
        {"BRANCHES": int(rows.shape[1]), "KNOWN": has_known, "COPY": dtype is not None},
        choice,
    )
    return out, [launch]


def _contiguous_rows(v: Tensor) -> Tensor:
    """``v`` with contiguous rows, perhaps with gaps between them: with variances it is part of an output."""
    expected = 1
    for size, stride in zip(reversed(v.shape[1:]), reversed(v.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return v.contiguous()
        expected *= size
    return v


guided_euler_step = operation(reference, plan_launches, cpu)
