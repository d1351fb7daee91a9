"""`best_layouts`: from a model and a mesh of any axes to the layouts of every operation, with the proof.

Where `planner.planning.make_plan` chooses the mesh, with pipeline stages and microbatches, here the mesh is given and
nothing is assumed of what its axes are for: data, tensor, sequence, vocabulary and parameter sharding are what comes
out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from costmodels.memory import OPTIMIZERS, PRECISIONS
from hardware_profiles.load import load_cluster
from planner.errors import UnknownNameError, UsageError
from planner.execution import TORCH_EAGER
from planner.graph import Segment
from planner.job import Constraints, Job, Pin
from planner.layout_result import BlockParams, LayoutResult
from planner.layouts.pins import block_pins
from planner.layouts.strategies import replicated_warning
from planner.solvers.block_layout.chain import trade_off
from planner.solvers.block_layout.detail import detail
from planner.solvers.block_layout.mesh import LayoutMesh
from planner.solvers.block_layout.model_layout import PlacedSegment, undominated
from planner.solvers.block_layout.problem import block_problem
from planner.solvers.block_layout.records import block_record, layout_text
from planner.solvers.block_layout.solving import solve_layouts
from planner.solvers.setting import Setting

if TYPE_CHECKING:
    from torch import Tensor, nn


def parse_mesh(text: str) -> dict[str, int]:
    """Axes and sizes of ``dp=8,tp=8``, outer to inner.

    Raises:
        UsageError: another form, a name twice, a size below 1.
    """
    axes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if not name.isidentifier() or not size.isdecimal() or int(size) < 1 or name in axes:
            raise UsageError(f"mesh {text!r}: write axes and sizes, outer to inner, each name once, as in dp=8,tp=8.")
        axes[name] = int(size)
    return axes


def best_layouts(
    model: str | nn.Module,
    *,
    hardware: str,
    mesh: Mapping[str, int],
    batch: int,
    seq_len: int | None = None,
    precision: str = "bf16",
    optimizer: str = "adamw",
    memory_fraction: float = Constraints.memory_fraction,
    pins: Sequence[Pin] = (),
    whole_tradeoff: bool = False,
    example_inputs: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
) -> LayoutResult:
    """Lay out every operation and parameter of a model over a mesh, exactly (`planner.solvers.block_layout`).

    Args:
        model: see `planner.planning.make_plan`; ``example_inputs`` and ``loss_fn`` as there.
        hardware: ``h100-sxm:8x8`` (8 nodes of 8), or a profile file.
        mesh: axes and their sizes, outer to inner; the product is the number of devices.
        batch: samples of one forward and backward pass over all devices.
        memory_fraction: part of device memory that layouts may use.
        pins: parameters whose placement on an axis is settled.
        whole_tradeoff: find all corners of the trade-off between seconds and memory, not those alone that were seen on
            the way to the best; parameters that blocks share may lie differently in each there.

    Raises:
        UsageError: pins that name no axis or parameter, or contradict each other.
        NoPlanError: nothing fits.
        ProfileError: a mesh of another size than the cluster, among others.
        UnknownNameError, ModelSourceError, TraceError: what they say.
    """
    for kind, name, known in (("precision", precision, PRECISIONS), ("optimizer", optimizer, OPTIMIZERS)):
        if name not in known:
            raise UnknownNameError(kind, name, known)
    cluster = load_cluster(hardware, prod(mesh.values()))
    from planner.capture.sources import capture_model  # torch takes seconds to import

    graph, seq_len, _ = capture_model(
        model, seq_len=seq_len, compute_dtype=PRECISIONS[precision].compute_dtype, example_inputs=example_inputs,
        loss_fn=loss_fn,
    )  # fmt: skip
    job = Job(global_batch=batch, seq_len=seq_len, precision=precision, optimizer=optimizer)
    setting = Setting(graph, cluster, job, TORCH_EAGER)
    layout_mesh = LayoutMesh(cluster, tuple(mesh), tuple(mesh.values()))
    limit = memory_fraction * cluster.device.memory_bytes
    settled = block_pins(graph, pins, tuple(mesh))
    found = solve_layouts(setting, layout_mesh, batch=batch, limit_bytes=limit, pins=settled)
    tradeoff = found.tradeoff
    if whole_tradeoff:
        blocks_of = range(len(graph.blocks))
        problems = [block_problem(setting, b, layout_mesh, batch=batch, pins=settled[b]) for b in blocks_of]
        tradeoff = undominated(trade_off(problems, setting.block_of))
    alike: dict[tuple[int, tuple[int, ...]], tuple[PlacedSegment, list[Segment]]] = {}
    for segment, placed in zip(graph.segments, found.best.segments, strict=True):
        alike.setdefault((segment.block, placed.choice), (placed, []))[1].append(segment)
    blocks = []
    for placed, calls in alike.values():
        shown = detail(placed, layout_mesh)
        record = block_record(graph, calls, shown)
        within = f"{', '.join(record.modules)}." if calls[0].prefix else ""
        params = {f"{within}{fqn}": layout_text(layout) for fqn, layout in shown.params.items()}
        blocks.append(BlockParams(layout=record, params=params))
    return LayoutResult(
        model=graph.name, hardware=cluster.name, mesh=dict(mesh), batch=batch, seq_len=seq_len,
        seconds=found.best.seconds, bound_s=found.bound_s, peak_bytes=found.best.peak_bytes, limit_bytes=limit,
        blocks=tuple(blocks), tradeoff=tuple((one.seconds, one.peak_bytes) for one in tradeoff),
        warnings=(*replicated_warning(graph), *graph.warnings),
    )  # fmt: skip
