"""Seconds of attention on one device: one fused kernel, or separate kernels with the scores in memory."""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import Literal

from costmodels.dtypes import dtype_bytes
from costmodels.products import gemm_s
from costmodels.streams import memory_bound_s
from hardware_profiles.cluster import Device

ATTENTION_TILE = 128
"""Rows of queries and columns of keys that a fused attention kernel works on (FlashAttention-2, section 3)."""

BACKWARD_FLOP_RATIO = 2.5
"""Fused attention's backward recomputes the scores: 5 products to the forward's 2 (FlashAttention-2, section 4.1)."""

SOFTMAX_DEPTH = 40
"""Head dim in whose products' time a score passes through the softmax. Without mask on H100, FlashAttention-3 reaches
497, 648 and 756 TFLOP/s with head dims 64, 128 and 256 (its figure 5): 52; FlashAttention-2 on A100 about 27."""

FLASH1_FRACTION = 0.48
"""Of FlashAttention-2's rate: FlashAttention-1, both ways. From table 1 of the FlashAttention-2 paper: the attention in
whose time GPT-3 1.3B and 2.7B at 8k go from 170 and 175 to 220 and 225 TFLOP/s; its abstract says 2 times."""

UNFUSED_FRACTION = 0.69
"""Of what products and streams reach by themselves: attention of separate kernels, whose products are many and thin and
whose softmax and dropout compute per element. From table 1 of the FlashAttention-2 paper: GPT-3 1.3B at 2k goes from
142 (Megatron-LM's kernels) to 196 TFLOP/s, so that attention takes 21.7 us a token and not 15.0."""

ATTENTION_REFERENCE_DIM = 128
"""Head dim of the profile's attention fractions."""

FlashGeneration = Literal["vendor", "flash2", "flash1"]
"""Fused attention: the kernel that the profile's fractions are of (the vendor's or the latest published), or an earlier
generation of FlashAttention."""

MASK_BYTES = 1
"""Of one element of a dropout mask."""


@lru_cache(maxsize=65536)
def attention_s(
    device: Device,
    dtype: str,
    *,
    batch: int,
    heads: int,
    q_len: int,
    kv_len: int,
    head_dim: int,
    causal: bool,
    backward: bool,
    generation: FlashGeneration = "vendor",
) -> float:
    """Seconds of fused attention over ``[batch, heads, q_len, head_dim]`` queries and ``kv_len`` keys, launch included.

    The FLOP counted are those *executed*: ``4 * batch * heads * q_len * kv_len * head_dim`` forward, of which causal
    masking skips the key tiles above the diagonal (so about half, plus half a tile on the diagonal), times 2.5
    backward. The profile's fractions are in terms of executed FLOP too. Each tile of 128 queries pays one
    key tile (backward: two) of start and end, and fewer tiles than compute units leave units idle. ``heads`` are query
    heads; grouped keys change the FLOP not at all. Heads narrower than 128 are slower, by `SOFTMAX_DEPTH`. Never less
    than reading and writing the operands.

    ``flash2`` runs at the profile's ``attention_flash2`` of the rate, ``flash1`` at `FLASH1_FRACTION` of that.

    Source: FlashAttention-2 (Dao 2023), section 3; the ramp with length follows the H100 figures of
    FlashAttention-3 (Shah et al. 2024), figures 5 and 6. Raises `UnknownNameError` for a dtype that the profile lacks.
    """
    element_bytes = dtype_bytes(dtype)
    peak = device.peak(dtype)
    if min(batch, heads, q_len, kv_len, head_dim) == 0:
        return 0.0
    fraction = device.efficiency.attention_backward if backward else device.efficiency.attention_forward
    fraction *= min(1.0, _softmax_share(head_dim) / _softmax_share(ATTENTION_REFERENCE_DIM))
    if generation != "vendor":
        fraction *= device.efficiency.attention_flash2
    if generation == "flash1":
        fraction *= FLASH1_FRACTION
    tile = min(ATTENTION_TILE, q_len, kv_len)
    columns: float = kv_len
    if causal:
        square = min(q_len, kv_len)
        skipped = square * max(square - tile, 0) / 2
        columns = kv_len - skipped / q_len
    edge = tile * (2 if backward else 1)
    flop = 4 * batch * heads * q_len * (columns + edge) * head_dim * (BACKWARD_FLOP_RATIO if backward else 1)
    num_tiles = batch * heads * ceil(q_len / ATTENTION_TILE)
    busy = min(1.0, num_tiles / device.num_compute_units)
    moved_bytes = element_bytes * batch * heads * head_dim * 2 * (q_len + kv_len) * (2 if backward else 1)
    bandwidth = device.memory_bytes_per_s * device.efficiency.pointwise
    return device.launch_overhead_s + max(flop / (peak * fraction * busy), moved_bytes / bandwidth)


@lru_cache(maxsize=65536)
def unfused_attention_s(
    device: Device,
    dtype: str,
    *,
    batch: int,
    heads: int,
    q_len: int,
    kv_len: int,
    head_dim: int,
    causal: bool,
    backward: bool,
    dropout: bool,
) -> float:
    """Seconds of attention as separate kernels with the scores in memory, over the shapes of `attention_s`: what runs
    without FlashAttention. With ``S = batch * heads * q_len * kv_len`` scores of ``e`` bytes, in Megatron-LM's order:
    ``q k^T``, one kernel for scale, mask and softmax, dropout, ``p v``. The products are computed whole, mask or not.

    Forward two batched products, backward four (the gradients of ``p``, ``v``, ``q`` and ``k``), each `gemm_s` over
    ``batch * heads`` matrices, which counts the scores that it reads or writes. Beside them, in bytes:

        softmax forward    read e S, write e S
        softmax backward   read output and gradient 2 e S, write e S
        dropout forward    read e S, write e S and the mask S
        dropout backward   read e S and the mask S, write e S

    Under a causal mask of equal lengths the softmax kernel reads the lower triangle only, and writes all (Megatron-LM,
    ``scaled_upper_triang_masked_softmax``). Softmax streams at the profile's ``norm``, dropout at its ``pointwise``
    fraction, and all of it runs at `UNFUSED_FRACTION`. 0 when a side is 0. Raises `UnknownNameError` for a dtype that
    the profile lacks.
    """
    scores = batch * heads * q_len * kv_len
    element_bytes = dtype_bytes(dtype)

    def product(m: int, n: int, k: int) -> float:
        return gemm_s(device, dtype, batch=batch * heads, m=m, n=n, k=k)

    seconds = product(q_len, kv_len, head_dim) + product(q_len, head_dim, kv_len)
    if backward:
        seconds += 2 * product(kv_len, head_dim, q_len)
    num_read = 2 if backward else 1
    seen = (1 + 1 / q_len) / 2 if causal and q_len == kv_len and q_len else 1.0
    seconds += memory_bound_s(device, element_bytes * scores * (num_read * seen + 1), "norm")
    if dropout:
        seconds += memory_bound_s(device, (2 * element_bytes + MASK_BYTES) * scores)
    return seconds / UNFUSED_FRACTION


def unfused_attention_saved_bytes(
    *, batch: int, heads: int, q_len: int, kv_len: int, dropout: bool, dtype: str = "bfloat16"
) -> int:
    """Bytes of scores that backward needs of the forward pass.

    ``e S`` of the softmax's output, with dropout also its mask ``S`` and its output ``e S``: ``5 a s^2 b`` in half
    precision. Source: Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
    section 4.1.
    """
    element_bytes = dtype_bytes(dtype)
    return batch * heads * q_len * kv_len * (2 * element_bytes + MASK_BYTES if dropout else element_bytes)


def _softmax_share(head_dim: int) -> float:
    """Part of the time in which a fused attention kernel multiplies."""
    return head_dim / (head_dim + SOFTMAX_DEPTH)
