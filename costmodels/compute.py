"""Seconds of one kernel on one device: matrix products, fused attention, and kernels that only move memory.

**Matrix product.** The output is cut into tiles; each compute unit works on one tile at a time, so the time is that of
the fullest unit (tile and wave quantisation: NVIDIA, "Matrix Multiplication Background User's Guide"). A tile of
``a x b`` with depth ``k`` costs

    2 a b (k + PROLOGUE_K) / (peak * fraction * reuse(a, b) / num_compute_units)

seconds: ``PROLOGUE_K`` columns' worth of time fill the pipeline and write the result, and ``reuse`` lowers the rate of
smaller tiles, which load more operands per FLOP. The library is taken to choose the best tile from the device's own
halved up to three times, and to split ``k`` over several units when tiles are too few (split-k,
NVIDIA CUTLASS "Efficient GEMM"), paying for the partial sums in memory traffic. The result never undercuts the
roofline, ``bytes / bandwidth`` (Williams, Waterman & Patterson 2009).

The two constants below are the only fitted numbers; they are the same for every device and were set once on the
bf16 timings of A100, H100 and H200 in the ai-dynamo/aiconfigurator database (sides of 1024 and more: median error 5 to
6 %, 90th percentile 10 to 13 %). All else comes from the profile.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import Literal

from hardware_profiles.cluster import Device
from hardware_profiles.errors import UnknownNameError

PROLOGUE_K = 96
"""Depth (elements of k) in whose time a tile fills its pipeline and writes its result: 3 stages of 32 in CUTLASS."""

REUSE_HALF = 8
"""Operand reuse ``a b / (a + b)`` of a tile, in elements, at which loading takes as long as computing."""

SPLIT_K = (1, 2, 4)
"""Units that may share the depth of one tile."""

ATTENTION_TILE = 128
"""Rows of queries and columns of keys that a fused attention kernel works on (FlashAttention-2, section 3)."""

BACKWARD_FLOP_RATIO = 2.5
"""Fused attention's backward recomputes the scores: 5 products to the forward's 2 (FlashAttention-2, section 4.1)."""

DTYPE_BYTES = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e4m3fnuz": 1,
    "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1, "complex32": 4, "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
}  # fmt: skip
"""Bytes of one element by torch dtype name."""


@lru_cache(maxsize=65536)
def gemm_s(
    device: Device,
    dtype: str,
    *,
    batch: int = 1,
    m: int,
    n: int,
    k: int,
    moved_bytes: float | None = None,
    grouped: bool = False,
) -> float:
    """Seconds of ``batch`` products ``[m, k] @ [k, n] -> [m, n]``, launch included.

    ``launch + max(waves * tile seconds + partial sums, bytes / bandwidth)``, least over tiles and splits (module
    docstring); ``bytes`` are ``moved_bytes`` where the operands are not matrices in memory (the im2col of a
    convolution), else ``element size * batch * (m k + k n + m n)``. ``grouped``: the matrices differ in their rows
    (experts), which one kernel reaches less of the peak with. 0 when a side is 0. Raises `UnknownNameError` for a
    dtype that the device's profile lacks.
    """
    element_bytes = dtype_bytes(dtype)
    fraction = device.efficiency.grouped_gemm if grouped else device.efficiency.gemm
    unit_flop_per_s = device.peak(dtype) * fraction / device.num_compute_units
    if min(batch, m, n, k) == 0:
        return 0.0
    bandwidth = device.memory_bytes_per_s * device.efficiency.pointwise
    best_s = float("inf")
    for rows, columns, reuse in _tiles(device.gemm_tile):
        num_tiles = batch * ceil(m / rows) * ceil(n / columns)
        for split in SPLIT_K:
            waves = ceil(num_tiles * split / device.num_compute_units)
            tile_flop = 2 * rows * columns * (k / split + PROLOGUE_K)
            partial_bytes = 0 if split == 1 else 2 * split * batch * m * n * DTYPE_BYTES["float32"]
            best_s = min(best_s, waves * tile_flop / (unit_flop_per_s * reuse) + partial_bytes / bandwidth)
            if num_tiles >= device.num_compute_units:
                break
    compulsory_bytes = element_bytes * batch * (m * k + k * n + m * n) if moved_bytes is None else moved_bytes
    return device.launch_overhead_s + max(best_s, compulsory_bytes / bandwidth)


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
) -> float:
    """Seconds of fused attention over ``[batch, heads, q_len, head_dim]`` queries and ``kv_len`` keys, launch included.

    The FLOP counted are those *executed*: ``4 * batch * heads * q_len * kv_len * head_dim`` forward, of which causal
    masking skips the key tiles above the diagonal (so about half, plus half a tile on the diagonal), times 2.5
    backward. The profile's fractions are in terms of executed FLOP too. Each tile of 128 queries pays one
    key tile (backward: two) of start and end, and fewer tiles than compute units leave units idle. ``heads`` are query
    heads; grouped keys change the FLOP not at all. Never less than reading and writing the operands.

    Source: FlashAttention-2 (Dao 2023), section 3; the ramp with length follows the H100 figures of
    FlashAttention-3 (Shah et al. 2024), figures 5 and 6. Raises `UnknownNameError` for a dtype that the profile lacks.
    """
    element_bytes = dtype_bytes(dtype)
    peak = device.peak(dtype)
    if min(batch, heads, q_len, kv_len, head_dim) == 0:
        return 0.0
    fraction = device.efficiency.attention_backward if backward else device.efficiency.attention_forward
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


MemoryBound = Literal["pointwise", "norm", "optimizer"]
"""Classes of kernels that move memory, by their figure in `hardware_profiles.cluster.Efficiency`."""


def memory_bound_s(device: Device, num_bytes: float, kind: MemoryBound = "pointwise") -> float:
    """Seconds of one kernel that reads and writes ``num_bytes`` in total and computes next to nothing, launch included.

    ``launch + num_bytes / (bandwidth * fraction of its kind)``; 0 for 0 bytes. Launch and bandwidth together are the
    curve of efficiency over bytes. Source: the profile's streaming benchmark.
    """
    if num_bytes <= 0:
        return 0.0
    fraction: float = getattr(device.efficiency, kind)
    return device.launch_overhead_s + num_bytes / (device.memory_bytes_per_s * fraction)


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element of a torch dtype name; `UnknownNameError` lists the known ones."""
    if dtype not in DTYPE_BYTES:
        raise UnknownNameError("dtype", dtype, DTYPE_BYTES)
    return DTYPE_BYTES[dtype]


@lru_cache(maxsize=64)
def _tiles(largest: tuple[int, int]) -> tuple[tuple[int, int, float], ...]:
    """Tiles (rows, columns, reuse) that the library may choose: the device's own halved up to three times, both ways.

    ``reuse = r / (r + REUSE_HALF)`` with ``r = a b / (a + b)``, relative to the device's own tile.
    """
    sizes = set()
    long, short = max(largest), min(largest)
    for _ in range(4):
        sizes |= {(long, short), (short, long)}
        long, short = max(ceil(long / 2), short), min(ceil(long / 2), short)
    own = _reuse(*largest)
    return tuple((rows, columns, _reuse(rows, columns) / own) for rows, columns in sorted(sizes, reverse=True))


def _reuse(rows: int, columns: int) -> float:
    """Part of the time in which a tile computes rather than loads."""
    reuse = rows * columns / (rows + columns)
    return reuse / (reuse + REUSE_HALF)
