"""One Euler step of every request along the weighted sum of its branches' velocities, known latents put back.

    z'[b] = z[b] + dt[b] * sum_g weights[b, g] * v[rows[b, g]]
    z'[b] = known[b] * t[b] + noise[b] * (1 - t[b])   where mask[b] is true

Every argument is a list with one entry for each moving modality, one or two of them; they are stepped in one launch.
z (B, ...) latents; v (R, ...) velocities of all rows; rows (B, G) int, weights (B, G) float (a request with fewer
branches has weight 0 there, and a branch of weight 0 is not read: it may hold anything); dt (B,). Known latents: known
and noise (B, ...), mask bool broadcastable to z, t (B,) the flow time to put them at (1 = clean); or all four None.
-> the new latents in z's dtype, sums in at least float32; then, where ``dtype`` is given, their copies in it, which the
next forward reads. Source: rectified flow with guidance as a linear combination of branches (SyncFlow section 3.1 and
Eq. 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import native
from .launch import Launch, operation, supported, tiles, tl, triton
from .launch.launching import DTYPES


def reference(
    z: Sequence[Tensor],
    v: Sequence[Tensor],
    rows: Sequence[Tensor],
    weights: Sequence[Tensor],
    dt: Sequence[Tensor],
    known: Sequence[Tensor | None],
    noise: Sequence[Tensor | None],
    mask: Sequence[Tensor | None],
    t: Sequence[Tensor | None],
    dtype: torch.dtype | None,
) -> list[Tensor]:
    """The guided step of each modality, then the known part at its own time."""
    entries = zip(z, v, rows, weights, dt, known, noise, mask, t, strict=True)
    return _with_copies([_step(*entry) for entry in entries], dtype)


def cpu(
    z: Sequence[Tensor],
    v: Sequence[Tensor],
    rows: Sequence[Tensor],
    weights: Sequence[Tensor],
    dt: Sequence[Tensor],
    known: Sequence[Tensor | None],
    noise: Sequence[Tensor | None],
    mask: Sequence[Tensor | None],
    t: Sequence[Tensor | None],
    dtype: torch.dtype | None,
) -> list[Tensor]:
    """The same in one pass over the latents of which nothing is known."""
    stepped = []
    for entry in zip(z, v, rows, weights, dt, known, noise, mask, t, strict=True):
        found = native.guided_step(*entry[:5]) if entry[5] is None else None
        stepped.append(_step(*entry) if found is None else found)
    return _with_copies(stepped, dtype)


def _with_copies(stepped: list[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    return stepped + ([] if dtype is None else [latent.to(dtype, copy=True) for latent in stepped])


def _step(
    z: Tensor,
    v: Tensor,
    rows: Tensor,
    weights: Tensor,
    dt: Tensor,
    known: Tensor | None,
    noise: Tensor | None,
    mask: Tensor | None,
    t: Tensor | None,
) -> Tensor:
    wide = torch.promote_types(z.dtype, torch.float32)

    def each(x: Tensor) -> Tensor:
        return x.to(wide).reshape(-1, *[1] * (z.ndim - 1))

    def weighted(weight: Tensor, branch: Tensor) -> Tensor:
        return weight * torch.where(weight != 0, branch.to(wide), 0)

    velocity = sum(weighted(each(weights[:, g]), v[rows[:, g]]) for g in range(rows.shape[1]))
    stepped = z.to(wide) + each(dt) * velocity
    if known is not None and noise is not None and mask is not None and t is not None:
        stepped = torch.where(mask, known.to(wide) * each(t) + noise.to(wide) * (1 - each(t)), stepped)
    return stepped.to(z.dtype)


@triton.jit
def step(
    i_program,
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
    G: tl.constexpr,
    HELD: tl.constexpr,
    COPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK of the ``size`` latent values of one request of one modality.

    s_row is the stride of ``v`` between rows, n_2 to n_4 are the sizes of the last three axes of five, s_0 to s_4 the
    strides of ``mask`` over all five.
    """
    blocks = tl.cdiv(size, BLOCK)
    i_request = (i_program // blocks).to(tl.int64)
    o_value = (i_program % blocks) * BLOCK + tl.arange(0, BLOCK)
    m_value = o_value < size
    first = i_request * size
    velocity = tl.zeros((BLOCK,), tl.float32)
    for g in tl.static_range(G):
        weight = tl.load(weights + i_request * G + g).to(tl.float32)
        i_row = tl.load(rows + i_request * G + g).to(tl.int64)
        read = tl.where(weight != 0, size, 0)
        branch = tl.load(v + i_row * s_row + o_value, mask=o_value < read, other=0.0)
        velocity += weight * branch.to(tl.float32)
    latent = tl.load(z + first + o_value, mask=m_value, other=0.0).to(tl.float32)
    latent += tl.load(dt + i_request).to(tl.float32) * velocity
    if HELD:
        time = tl.load(t + i_request).to(tl.float32)
        clean = tl.load(known + first + o_value, mask=m_value, other=0.0).to(tl.float32)
        noisy = tl.load(noise + first + o_value, mask=m_value, other=0.0).to(tl.float32)
        o_mask = (o_value % n_4) * s_4 + (o_value // n_4 % n_3) * s_3 + (o_value // (n_4 * n_3) % n_2) * s_2
        o_mask += (o_value // (n_4 * n_3 * n_2)) * s_1
        held = tl.load(mask + i_request * s_0 + o_mask, mask=m_value, other=0)
        latent = tl.where(held != 0, clean * time + noisy * (1 - time), latent)
    rounded = latent.to(out.dtype.element_ty)
    tl.store(out + first + o_value, rounded, mask=m_value)
    if COPY:
        tl.store(copy + first + o_value, rounded.to(copy.dtype.element_ty), mask=m_value)


@triton.jit
def steps(
    z_a,
    v_a,
    rows_a,
    weights_a,
    dt_a,
    known_a,
    noise_a,
    mask_a,
    t_a,
    out_a,
    copy_a,
    size_a,
    s_row_a,
    n_2_a,
    n_3_a,
    n_4_a,
    s_0_a,
    s_1_a,
    s_2_a,
    s_3_a,
    s_4_a,
    z_b,
    v_b,
    rows_b,
    weights_b,
    dt_b,
    known_b,
    noise_b,
    mask_b,
    t_b,
    out_b,
    copy_b,
    size_b,
    s_row_b,
    n_2_b,
    n_3_b,
    n_4_b,
    s_0_b,
    s_1_b,
    s_2_b,
    s_3_b,
    s_4_b,
    programs_a,
    G_A: tl.constexpr,
    HELD_A: tl.constexpr,
    G_B: tl.constexpr,
    HELD_B: tl.constexpr,
    COPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The blocks of the first modality, ``programs_a`` of them, then those of the second, which G_B = 0 leaves out."""
    i_program = tl.program_id(0)
    if i_program < programs_a:
        step(
            i_program, z_a, v_a, rows_a, weights_a, dt_a, known_a, noise_a, mask_a, t_a, out_a, copy_a, size_a,
            s_row_a, n_2_a, n_3_a, n_4_a, s_0_a, s_1_a, s_2_a, s_3_a, s_4_a, G_A, HELD_A, COPY, BLOCK,
        )  # fmt: skip
    elif G_B > 0:
        step(
            i_program - programs_a, z_b, v_b, rows_b, weights_b, dt_b, known_b, noise_b, mask_b, t_b, out_b, copy_b,
            size_b, s_row_b, n_2_b, n_3_b, n_4_b, s_0_b, s_1_b, s_2_b, s_3_b, s_4_b, G_B, HELD_B, COPY, BLOCK,
        )  # fmt: skip


def prepare(
    z: Sequence[Tensor],
    v: Sequence[Tensor],
    rows: Sequence[Tensor],
    weights: Sequence[Tensor],
    dt: Sequence[Tensor],
    known: Sequence[Tensor | None],
    noise: Sequence[Tensor | None],
    mask: Sequence[Tensor | None],
    t: Sequence[Tensor | None],
    dtype: torch.dtype | None,
) -> tuple[list[Tensor], list[Launch]] | None:
    """New latents and their copies beside the old ones."""
    entries = list(zip(z, v, rows, weights, dt, known, noise, mask, t, strict=True))
    numbers = [x for entry in entries for i, x in enumerate(entry) if x is not None and i not in (2, 7)]
    if len(entries) > 2 or not all(x.ndim <= 5 for x in z) or not all(r.shape[1] for r in rows):
        return None
    if not all(map(supported, numbers)) or dtype not in (None, *DTYPES):
        return None
    out = [x.new_empty(x.shape) for x in z]
    copies = [] if dtype is None else [x.new_empty(x.shape, dtype=dtype) for x in z]
    return [*out, *copies], [launch(entries, out, copies)]


def launch(entries: Sequence[tuple[Any, ...]], out: Sequence[Tensor], copies: Sequence[Tensor]) -> Launch:
    """The launch that fills ``out`` and ``copies`` (or none) from each modality's arguments, in the operation's order.

    ``out`` may be the contiguous latents themselves: a program reads each value before it writes it, and no other
    program reads it. 512 values a program, four of float32 or 16 bytes a thread: at batch 1 the full-size model's video
    has 32768, and larger programs would leave more than half of the GPU idle.
    """
    choice = tiles.choose("guided_euler_step", {"BLOCK": 512, "num_warps": 4, "num_stages": 1}, dtype=out[0].dtype)
    arguments: dict[str, Any] = {}
    constants: dict[str, Any] = {"COPY": bool(copies), "G_B": 0, "HELD_B": False}
    programs = [0, 0]
    for i, (z, v, rows, weights, dt, *parts) in enumerate(entries):
        held = all(part is not None for part in parts)
        known, noise, mask, t = parts if held else (z, z, z, dt)
        shape = [z.shape[0], *[1] * (5 - z.ndim), *z.shape[1:]]
        spread = mask.expand(z.shape).stride()
        size, v = z.numel() // max(z.shape[0], 1), _packed(v)
        values = {
            "z": z.contiguous(),
            "v": v,
            "rows": rows.contiguous(),
            "weights": weights.contiguous(),
            "dt": dt.contiguous(),
            "known": known.contiguous(),
            "noise": noise.contiguous(),
            "mask": mask,
            "t": t.contiguous(),
            "out": out[i],
            "copy": copies[i] if copies else z,
            "size": size,
            "s_row": v.stride(0),
            **{f"n_{axis}": shape[axis] for axis in (2, 3, 4)},
            **{f"s_{axis}": stride for axis, stride in enumerate([spread[0], *[0] * (5 - z.ndim), *spread[1:]])},
        }
        arguments |= {f"{name}_{'ab'[i]}": value for name, value in values.items()}
        constants |= {f"G_{'AB'[i]}": int(rows.shape[1]), f"HELD_{'AB'[i]}": held}
        programs[i] = z.shape[0] * -(-size // choice["BLOCK"])
    if len(entries) == 1:  # nothing reads or writes the second modality
        arguments |= {f"{name}_b": z if name in ("out", "copy") else value for name, value in values.items()}
    return Launch(steps, (sum(programs),), {**arguments, "programs_a": programs[0]}, constants, choice)


def _packed(v: Tensor) -> Tensor:
    """``v`` with contiguous rows, which may lie apart (a model that also predicts variances returns such a slice)."""
    expected = 1
    for size, stride in zip(reversed(v.shape[1:]), reversed(v.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return v.contiguous()
        expected *= size
    return v


guided_euler_step = operation(reference, prepare, cpu)
