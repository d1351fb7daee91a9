"""Seconds of matrix products on one device.

The output is cut into tiles; each compute unit works on one tile at a time, so the time is that of
the fullest unit (tile and wave quantisation: NVIDIA, "Matrix Multiplication Background User's Guide"). A tile of
``a x b`` with depth ``k`` costs

    2 a b (k + PROLOGUE_BYTES / element size) / (peak * fraction * reuse(a, b) / num_compute_units)

seconds: the prologue's depth fills the pipeline and writes the result, and ``reuse`` lowers the rate of smaller tiles,
which load more operands per FLOP. The library is taken to choose the best tile from parts of the device's own, and to
split ``k`` over several units when tiles are too few (split-k, NVIDIA CUTLASS "Efficient GEMM"), paying for the partial
sums in memory traffic. The result never undercuts the roofline, ``bytes / bandwidth`` (Williams, Waterman & Patterson
2009). After `BURST_S` the device's power limit leaves ``gemm_sustained`` of the rate.

The fraction is the profile's, one per family of dtypes. The five constants below are the only other numbers fitted;
they are the same for all devices and dtypes, set on the 23,256 timings of A100, H100, H200, B200, B300 and GB200 in the
ai-dynamo/aiconfigurator database. docs/kernels.md says how well that agrees.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil

from costmodels.dtypes import DTYPE_BYTES, operand_bytes
from hardware_profiles.cluster import Device

PROLOGUE_BYTES = 192
"""Depth of a tile, in bytes of one row of an operand, in whose time it fills its pipeline and writes its result: 3
stages of 64 bytes in CUTLASS. In bytes, because memory sets it: twice the elements at half the size."""

FILL_S = 1e-6
"""From a kernel's start to its first product and from its last to its end: a few round trips to memory."""

BURST_S = 2e-3
"""How long a product runs before the power limit lowers the clock; the timings of 1 ms show nothing of it, those of
5 ms most of it."""

REUSE_HALF = 8
"""Operand reuse ``a b / (a + b)`` of a tile, in elements, at which loading takes as long as computing."""

SPLIT_K = (1, 2, 4)
"""Units that may share the depth of one tile."""

OUTPUT_BYTES = 2
"""Least bytes of an element that a product writes: those of 8 and 4 bits write bfloat16."""


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
    sustained: bool = False,
) -> float:
    """Seconds of ``batch`` products ``[m, k] @ [k, n] -> [m, n]``, launch included.

    ``launch + FILL_S + max(waves * tile seconds + partial sums, bytes / bandwidth)``, least over tiles and splits, of
    which what exceeds `BURST_S` goes at the sustained rate (module docstring); ``bytes`` are ``moved_bytes`` where the
    operands are not matrices in memory (the im2col of a convolution), else
    ``batch * (operand bytes * (m k + k n) + output bytes * m n)``. Casting operands to 8 bits is not included
    (`quantise_s`). ``grouped``: the matrices differ in their rows (experts), which one kernel reaches less of the peak
    with; the profile's figure for it is of half precision and changes with the dtype as that of the dense product does.
    ``sustained``: the product is one of a long row without a pause, as in training, so the power limit holds from its
    start. 0 when a side is 0. Raises `UnknownNameError` for a dtype that the device's profile lacks.
    """
    element_bytes = operand_bytes(dtype)
    efficiency = device.efficiency
    fraction = efficiency.product(dtype) * (efficiency.grouped_gemm / efficiency.gemm if grouped else 1)
    unit_flop_per_s = device.peak(dtype) * fraction / device.num_compute_units
    if min(batch, m, n, k) == 0:
        return 0.0
    bandwidth = device.memory_bytes_per_s * efficiency.pointwise
    prologue = PROLOGUE_BYTES / element_bytes
    partial_s = 2 * batch * m * n * DTYPE_BYTES["float32"] / bandwidth
    best_s = float("inf")
    for rows, columns, reuse in _tiles(device.gemm_tile):
        num_tiles = batch * ceil(m / rows) * ceil(n / columns)
        k_s = 2 * rows * columns / (unit_flop_per_s * reuse)
        for split in SPLIT_K:
            waves = ceil(num_tiles * split / device.num_compute_units)
            partials_s = 0 if split == 1 else split * partial_s
            best_s = min(best_s, waves * k_s * (k / split + prologue) + partials_s)
            if num_tiles >= device.num_compute_units:
                break
    if moved_bytes is None:
        moved_bytes = batch * (element_bytes * (m * k + k * n) + max(element_bytes, OUTPUT_BYTES) * m * n)
    busy_s = max(best_s, moved_bytes / bandwidth)
    throttled_s = (busy_s if sustained else max(0.0, busy_s - BURST_S)) * (1 / efficiency.gemm_sustained - 1)
    return device.launch_overhead_s + FILL_S + busy_s + throttled_s


@lru_cache(maxsize=64)
def _tiles(largest: tuple[int, int]) -> tuple[tuple[int, int, float], ...]:
    """Tiles (rows, columns, reuse) that the library may choose, either way round: of the device's own tile the whole,
    three quarters, half and a quarter of the long side, and the whole, three quarters and half of the short side.

    ``reuse = r / (r + REUSE_HALF)`` with ``r = a b / (a + b)``, relative to the device's own tile.
    """
    long, short = max(largest), min(largest)
    pairs = {(ceil(long * a / 4), ceil(short * b / 4)) for a in (4, 3, 2, 1) for b in (4, 3, 2)}
    own = _reuse(*largest)
    sizes = pairs | {(b, a) for a, b in pairs}
    return tuple((rows, columns, _reuse(rows, columns) / own) for rows, columns in sorted(sizes, reverse=True))


def _reuse(rows: int, columns: int) -> float:
    """Part of the time in which a tile computes rather than loads."""
    reuse = rows * columns / (rows + columns)
    return reuse / (reuse + REUSE_HALF)
