"""What is measured: sizes of kernels and messages, groups of ranks, and the order in which they come.

Messages come coarse first: a first pass has few sizes of every collective over every group, the later passes fill in.
A run that ends early has then seen everything once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from costmodels.units import GIB, KIB, MIB, MILLI
from hardware_profiles.samples import Collective, Measurement

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes and time of a run."""

    gemm: tuple[Shape, ...]
    """``(m, n, k)``, smallest first."""
    grouped_gemm: tuple[Shape, ...]
    """``(groups, m, n, k)``."""
    attention: tuple[Shape, ...]
    """``(batch, heads, length, head_dim)``."""
    stream_bytes: tuple[int, ...]
    """Bytes of one operand of the kernels that move memory; beyond any cache."""
    passes: tuple[tuple[int, ...], ...]
    """Bytes of the messages, pass by pass."""
    pair_bytes: int
    """Message of every pair of devices of a node by itself; 0: pairs are not measured."""
    overlap: tuple[Shape, int]
    """Matrix product, and bytes of the all-reduces beside it."""
    budget_s: float
    """Time of one measurement, all its repeats."""
    slow_s: float
    """A single call that takes longer ends the growth of its sizes."""
    total_s: float
    """Measurements that have not begun by then are left out."""
    batch_s: float
    """A repeat is as many calls as take this long, so that the clock and the host's jitter average out."""
    min_repeats: int = 4
    max_repeats: int = 16


FULL = Sizes(
    gemm=(
        (256, 256, 256), (512, 512, 512), (64, 2048, 2048), (1024, 1024, 1024), (512, 4096, 1024), (2048, 2048, 2048),
        (64, 8192, 8192), (4096, 1024, 4096), (4096, 4096, 4096), (8192, 4096, 4096), (8192, 8192, 1024),
        (8192, 8192, 8192), (8192, 28672, 4096), (16384, 16384, 16384),
    ),
    grouped_gemm=((8, 256, 256, 256), (8, 512, 1024, 512), (8, 1024, 4096, 4096), (8, 4096, 4096, 4096)),
    attention=(
        (1, 4, 512, 64), (1, 4, 1024, 128), (1, 8, 2048, 128), (2, 32, 2048, 128), (1, 32, 4096, 128), (1, 32, 16384,
        128),
    ),
    stream_bytes=(64 * MIB, 256 * MIB, GIB),
    passes=(
        (KIB, 64 * KIB, MIB, 16 * MIB, 256 * MIB),
        (8 * KIB, 256 * KIB, 4 * MIB, 64 * MIB, GIB),
        (2 * KIB, 16 * KIB, 128 * KIB, 512 * KIB, 2 * MIB, 8 * MIB, 32 * MIB, 128 * MIB, 512 * MIB),
    ),
    pair_bytes=64 * MIB,
    overlap=((4096, 4096, 4096), 256 * MIB),
    budget_s=1.0,
    slow_s=2.0,
    total_s=3600.0,
    batch_s=40 * MILLI,
)  # fmt: skip

QUICK = Sizes(
    gemm=((256, 256, 256), (512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (8192, 4096, 4096), (8192, 8192,
    8192)), grouped_gemm=((8, 256, 256, 256), (8, 1024, 4096, 4096)), attention=((1, 4, 512, 64), (1, 4, 1024, 128),
    (1, 32, 4096, 128)), stream_bytes=(64 * MIB, 256 * MIB), passes=((KIB, 64 * KIB, MIB, 16 * MIB), (8 * KIB, 256 *
    KIB, 4 * MIB, 64 * MIB), (GIB,)), pair_bytes=16 * MIB, overlap=((2048, 2048, 2048), 16 * MIB), budget_s=0.2,
    slow_s=0.25, total_s=60.0, batch_s=10 * MILLI, max_repeats=9,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Groups of ``size`` ranks, ``stride`` apart; ``only`` one of them, or all at once."""

    size: int
    stride: int
    only: tuple[int, ...] = ()

    def groups(self, world_size: int) -> list[tuple[int, ...]]:
        """Ranks of every group that runs."""
        if self.only:
            return [self.only]
        block = self.size * self.stride
        return [
            tuple(range(start + offset, start + offset + block, self.stride))
            for start in range(0, world_size - block + 1, block)
            for offset in range(self.stride)
        ]


def axes(num_nodes: int, per_node: int) -> list[Axis]:
    """The groups that a machine is measured with.

    Inside the node all devices, halves and pairs (neighbours, and far apart), each kind all at once; across nodes the
    devices of equal index, one index after the other ("each network card") and all at once; the whole world.
    """
    found: dict[Axis, None] = {}
    if per_node > 1:
        found[Axis(size=per_node, stride=1)] = None
        found[Axis(size=2, stride=1)] = None
        if per_node % 2 == 0 and per_node > 2:
            found[Axis(size=per_node // 2, stride=1)] = None
            found[Axis(size=2, stride=per_node // 2)] = None
            found[Axis(size=per_node // 2, stride=2)] = None
    if num_nodes > 1:
        found[Axis(size=num_nodes, stride=per_node)] = None
        for index in range(per_node):
            only = tuple(range(index, num_nodes * per_node, per_node))
            found[Axis(size=num_nodes, stride=per_node, only=only)] = None
        if num_nodes % 2 == 0 and num_nodes > 2:
            found[Axis(size=2, stride=per_node)] = None
        if per_node > 1:
            found[Axis(size=num_nodes * per_node, stride=1)] = None
    return list(found)


_OPERATIONS: tuple[Collective, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")


def device_plan(sizes: Sizes, dtypes: Sequence[str], *, accelerator: bool) -> Iterator[Measurement]:
    """Measurements of a device by itself; ``dtypes`` are those that it multiplies, the preferred one first."""
    yield Measurement(kind="launch")
    for num_bytes in sizes.stream_bytes:
        # An addition reads two operands and writes one; a norm reads one, writes one; AdamW reads four, writes three.
        yield Measurement(kind="pointwise", dtype="float32", num_bytes=3 * num_bytes)
        yield Measurement(kind="norm", dtype="float32", num_bytes=2 * num_bytes)
        yield Measurement(kind="optimizer", dtype="float32", num_bytes=7 * num_bytes)
    for shape in sizes.gemm:
        for dtype in dtypes:
            yield Measurement(kind="gemm", dtype=dtype, shape=shape)
    for shape in sizes.grouped_gemm:
        yield Measurement(kind="grouped_gemm", dtype=dtypes[0], shape=shape)
    for shape in sizes.attention:
        yield Measurement(kind="attention_forward", dtype=dtypes[0], shape=shape)
        yield Measurement(kind="attention_backward", dtype=dtypes[0], shape=shape)
    if accelerator:
        for num_bytes in sizes.stream_bytes:
            yield Measurement(kind="host_link", num_bytes=num_bytes)


def collective_plan(sizes: Sizes, num_nodes: int, per_node: int, dtype: str) -> Iterator[Measurement]:
    """Measurements between devices; nothing for a single one."""
    world_size = num_nodes * per_node
    if world_size == 1:
        return
    kinds = axes(num_nodes, per_node)
    for i, messages in enumerate(sizes.passes):
        for axis in kinds:
            for num_bytes in messages:
                yield from _one(axis, num_bytes)
        if i == 0:
            (m, n, k), num_bytes = sizes.overlap
            for kind in ("overlap_alone", "overlap_busy"):
                yield Measurement(kind=kind, dtype=dtype, shape=(m, n, k), num_bytes=num_bytes, size=world_size)
            if sizes.pair_bytes and per_node > 2:
                yield from _pairs(per_node, sizes.pair_bytes)


def _one(axis: Axis, num_bytes: int) -> Iterator[Measurement]:
    for kind in _OPERATIONS:
        yield Measurement(kind=kind, num_bytes=num_bytes, size=axis.size, stride=axis.stride, ranks=axis.only)
    if axis.size == 2:
        yield Measurement(kind="send", num_bytes=num_bytes, size=2, stride=axis.stride, ranks=axis.only)


def _pairs(per_node: int, num_bytes: int) -> Iterator[Measurement]:
    """Every pair of devices of the first node by itself."""
    for first in range(per_node):
        for second in range(first + 1, per_node):
            yield Measurement(kind="send", num_bytes=num_bytes, size=2, stride=second - first, ranks=(first, second))
