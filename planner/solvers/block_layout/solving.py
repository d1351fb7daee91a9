"""Best layouts of a model: its blocks' problems, chained, and parameters that blocks share made to lie alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from planner.errors import NoPlanError
from planner.layouts.pins import BlockPins
from planner.layouts.placements import Layout
from planner.solvers.block_layout.chain import solve_chain
from planner.solvers.block_layout.mesh import LayoutMesh
from planner.solvers.block_layout.model_layout import LayoutSolution
from planner.solvers.block_layout.problem import block_problem
from planner.solvers.setting import Setting


def solve_layouts(
    setting: Setting,
    mesh: LayoutMesh,
    *,
    batch: int,
    limit_bytes: float | None = None,
    pins: Sequence[BlockPins] = (),
) -> LayoutSolution:
    """Best layouts of every operation of a model over a mesh.

    Args:
        batch: samples of one forward and backward pass over all devices of the mesh.
        limit_bytes: memory of one device, buffers included; ``None`` for no limit.
        pins: per distinct block, if any (`planner.layouts.pins`).

    Parameters that several blocks share lie alike in all of them: where they would not, each of the layouts found is
    settled for all, and the fastest kept, with the bound that holds for any.

    Raises:
        NoPlanError: nothing is found that fits within ``limit_bytes``, or a value cannot reach its readers from where
            it is pinned.
    """
    graph = setting.graph
    room = None if limit_bytes is None else limit_bytes - sum(graph.resident_bytes)
    settled = [dict(pins[b]) if pins else {} for b in range(len(graph.blocks))]
    problems = [block_problem(setting, b, mesh, batch=batch, pins=settled[b]) for b in range(len(graph.blocks))]
    free = found = solve_chain(problems, setting.block_of, room)
    for readers in _shared(setting):
        tries = []
        for layout in dict.fromkeys(_at_rest(setting, found, *reader) for reader in readers):
            alike, pinned = list(problems), [dict(p) for p in settled]
            for b, fqn in readers:
                pinned[b][fqn] = dict(zip(mesh.axes, layout, strict=True))
                alike[b] = block_problem(setting, b, mesh, batch=batch, pins=pinned[b])
            with suppress(NoPlanError):
                tries.append((solve_chain(alike, setting.block_of, room), alike, pinned))
        if not tries:
            raise NoPlanError(f"no layouts were found in which all that share {readers[0][1]} have it alike.")
        found, problems, settled = min(tries, key=lambda tried: tried[0].best.seconds)
    return replace(found, bound_s=free.bound_s)


def _shared(setting: Setting) -> list[list[tuple[int, str]]]:
    """(block, relative FQN) of the readers of each parameter that distinct blocks share."""
    readers: dict[str, dict[tuple[int, str], None]] = {}
    for segment in setting.graph.segments:
        for relative, _ in setting.graph.blocks[segment.block].params:
            readers.setdefault(setting.graph.canonical(segment, relative), {})[segment.block, relative] = None
    return [list(found) for found in readers.values() if len(found) > 1]


def _at_rest(setting: Setting, found: LayoutSolution, b: int, fqn: str) -> Layout:
    placed = found.best.segments[setting.block_of.index(b)]
    pairs = zip(placed.problem.choices, placed.choice, strict=True)
    return next(choice.layouts[s] for choice, s in pairs if choice.kind == "param" and choice.fqn == fqn)
