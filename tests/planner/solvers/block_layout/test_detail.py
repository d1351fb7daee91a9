"""A solved segment in words: nothing of its cost is missing, and what is moved leads from its maker to its reader."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest

from planner.layouts.redistribution import absolute
from planner.solvers.block_layout.detail import Detail, Redistributed, detail
from planner.solvers.block_layout.mesh import LayoutMesh
from planner.solvers.block_layout.model_layout import PlacedSegment
from planner.solvers.block_layout.solving import solve_layouts
from tests.planner.solvers.block_layout.cases import llama, mesh_of, slow, tiny
from tests.planner.solvers.block_layout.hand import setting_of
from tests.planner.solvers.block_layout.test_problem import MLP

CASES: list[tuple[str, tuple[int, ...]]] = [
    (family, sizes) for family in ("gqa", "mixtral", "mla", "resnet") for sizes in ((4,), (2, 2))
]
CASES += [("llama", (8,)), ("llama", (4, 8)), ("mlp", (2, 2, 2))]


@cache
def best(name: str, sizes: tuple[int, ...]) -> tuple[LayoutMesh, tuple[PlacedSegment, ...]]:
    """Of every segment."""
    if name == "mlp":
        setting, batch = setting_of(MLP), 1
    elif name == "llama":
        setting, batch = llama("h100-sxm:4x8", batch=8, seq_len=2048, num_layers=4, dim=2048, num_heads=16), 8
    else:
        setting, batch = tiny(name, slow(4), batch=4), 4
    mesh = mesh_of(setting.cluster, *sizes)
    return mesh, solve_layouts(setting, mesh, batch=batch).best.segments


@cache
def solved(name: str, sizes: tuple[int, ...]) -> tuple[tuple[PlacedSegment, Detail], ...]:
    """Each different segment of the best layouts."""
    mesh, segments = best(name, sizes)
    return tuple((segment, detail(segment, mesh)) for segment in {id(s): s for s in segments}.values())


def moved(said: Detail) -> Sequence[Redistributed]:
    return [one for op in said.ops for one in op.redistributed] + list(said.leaving)


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_seconds_add_up_to_the_cost_of_the_segment(name: str, sizes: tuple[int, ...]) -> None:
    for segment, said in solved(name, sizes):
        assert said.seconds == pytest.approx(segment.seconds, rel=1e-9)


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_each_path_leads_from_its_source_to_its_target(name: str, sizes: tuple[int, ...]) -> None:
    for segment, said in solved(name, sizes):
        for one in moved(said):
            at = absolute(one.source, segment.problem.values.shapes[one.value], sizes)
            for step in one.steps:
                assert step.move.source == at
                at = step.move.target
            assert at == absolute(one.target, segment.problem.values.shapes[one.value], sizes)


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_every_operation_reads_what_was_made_or_brought_before_it(name: str, sizes: tuple[int, ...]) -> None:
    for segment, said in solved(name, sizes):
        params = dict(segment.problem.values.block.params)
        there = {params[fqn]: {layout} for fqn, layout in said.params.items()}
        made = {v for op in said.ops for v, _ in op.outputs} | there.keys()
        for op in said.ops:
            for one in op.redistributed:
                assert one.value not in made or one.source in there[one.value]
                there.setdefault(one.value, set()).add(one.target)
            for v, layout in op.inputs:
                assert v not in made or layout in there[v]
            there.update({v: {layout} for v, layout in op.outputs})


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_every_forward_operation_is_there_once(name: str, sizes: tuple[int, ...]) -> None:
    for segment, said in solved(name, sizes):
        forward = [i for i, op in enumerate(segment.problem.values.block.ops) if op.phase == "forward"]
        assert sorted(i for op in said.ops for i in op.ops) == forward


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_neighbouring_segments_agree_on_what_lies_between(name: str, sizes: tuple[int, ...]) -> None:
    _, segments = best(name, sizes)
    for before, after in pairwise(segments):
        if (entry := after.problem.entry) is not None:
            leaves = before.problem.choices[before.problem.exit].layouts[before.choice[before.problem.exit]]
            assert after.problem.choices[entry].layouts[after.choice[entry]] == leaves
