"""Every option whose ranks tell each other something, by real processes, against one device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from math import prod

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from planner.layouts.redistribution import absolute
from planner.layouts.strategies import Option, block_nodes
from planner.layouts.strategies.nodes import differentiable
from planner.solvers import implementation_traffic as traffic
from planner.solvers.block_layout.detail import PlacedOp
from planner.solvers.block_layout.strategies import Strategy, strategies
from tests.planner.layouts.strategies.harness import Whole, run_whole
from tests.planner.layouts.strategies.models import blocks, forward, shapes_of
from tests.planner.layouts.strategies.running import Node
from tests.planner.layouts.strategies.test_rules_by_execution import calls, nodes
from tests.planner.runtime.counting import Counting
from tests.planner.runtime.gloo import run_ranks
from tests.planner.runtime.meshes_by_hand import axis_groups
from tests.planner.runtime.rank_runs import Result, Sizes, compare, laid, placed, rank_result, run_on, sized

Case = tuple[str, Node, tuple[Option, ...], Whole]
"""With one option for each axis."""
FAMILIES = ("norms", "convolution", "attention", "loss")
MODELS = ("mixtral", "mla", "hf:mixtral")


def of_calls(seed: int, num_ranks: int) -> Iterator[Case]:
    random = torch.Generator().manual_seed(seed)
    for family in FAMILIES:
        for call in calls(family, seed):
            for node, tensors in nodes(call):
                whole = run_whole(node, {v: tensors[v] for v in node.node.inputs}, random)
                for option in node.node.options:
                    if option.splits(num_ranks) and option.implementation != "local":
                        yield call[0], node, (option,), whole


def of_models(num_ranks: int) -> Iterator[Case]:
    """Nodes of several operations."""
    random = torch.Generator().manual_seed(0)
    for name in MODELS:
        for made, block in blocks(name):
            shapes = shapes_of(made, block)
            values = forward(block, shapes, random)
            for found in block_nodes(block, shapes):
                if len(found.ops) > 1:
                    node = Node(block, shapes, found, differentiable(block))
                    whole = run_whole(node, {v: values[v] for v in found.inputs}, random)
                    for option in found.options:
                        if option.splits(num_ranks):
                            yield f"{name} {[op.name for op in node.ops]}", node, (option,), whole


SEEDS = {2: (2,), 3: (3, 10), 4: (24,)}
"""Sizes that so many ranks divide often."""


@cache
def cases(num_ranks: int) -> tuple[Case, ...]:
    found = [case for seed in SEEDS[num_ranks] for case in of_calls(seed, num_ranks)]
    return (*(of_models(num_ranks) if num_ranks < 4 else ()), *found)


def of_two_axes() -> Iterator[Case]:
    """Some ways to run the nodes of several axes that communicate, on a mesh of 2 x 2."""
    random, seed = torch.Generator().manual_seed(0), SEEDS[4][0]
    for family in FAMILIES:
        for call in calls(family, seed):
            node, tensors = next(nodes(call))
            whole = run_whole(node, {v: tensors[v] for v in node.node.inputs}, random)
            found = [s for s in strategies(node.block, node.node, (2, 2)) if _together(node, s)]
            yield from ((call[0], node, s.options, whole) for s in found[:: 1 + len(found) // 6])


def _together(node: Node, strategy: Strategy) -> bool:
    """Whether ranks communicate, and no axis cuts across another."""
    known = all(
        absolute(layout, node.shapes[v], (2, 2)) is not None
        for v, layout in zip(
            (*node.node.inputs, *node.node.outputs), (*strategy.inputs, *strategy.outputs), strict=True
        )
    )
    names = [option.implementation for option in strategy.options]
    one_dim = len({p.dim for p in strategy.inputs[0]}) == 1  # whose borders would be with ranks of no common group
    return known and any(name != "local" for name in names) and not ("halo" in names and one_dim)


@cache
def cases_of(sizes: Sizes) -> tuple[Case, ...]:
    return cases(sizes[0]) if len(sizes) == 1 else tuple(of_two_axes())


def run(sizes: Sizes) -> list[Result]:
    mesh = axis_groups(*sizes)
    return [rank_result(node, placed(node, *options), mesh, whole) for _, node, options, whole in cases_of(sizes)]


@pytest.mark.parametrize("sizes", [(2,), (3,), (4,), (2, 2)], ids=str)
def test_every_option_that_communicates(sizes: Sizes) -> None:
    made = cases_of(sizes)
    results = run_ranks(prod(sizes), run, sizes)
    seen: Counter[str] = Counter()
    for i, (name, node, options, whole) in enumerate(made):
        of_ranks, how = [of_rank[i] for of_rank in results], placed(node, *options)
        try:
            compare(node, how, sizes, whole, of_ranks)
            check_traffic(node, how, sizes, of_ranks[0])
        except AssertionError as wrong:
            shapes = [node.shapes[v] for v in (*node.node.inputs, *node.node.outputs)]
            raise AssertionError(f"{name} {shapes} {how} on {sizes}") from wrong
        seen.update(how.implementations)
    expected = {"statistics", "sync", "halo", "loss_parallel", "mean_count", "context_all_gather", "ring"}
    assert min(seen[name] for name in expected) > 1 and (seen["dispatch"] > 1 or sizes != (2,)), seen


def check_traffic(node: Node, how: PlacedOp, sizes: Sizes, first: Result) -> None:
    """That the first rank issues the collectives that are predicted; where rows go is up to the data."""
    inside = traffic.Node(sized(node), node.shapes, sizes, how, node.gradients)
    for phase in ("forward", "backward"):
        predicted = [(t.kind, t.num_bytes) for t in traffic.told(inside) if t.phase == phase]
        seen = first.told[phase]
        if "dispatch" in how.implementations:
            predicted, seen = ([(kind, 0) for kind, _ in found] for found in (predicted, seen))
        assert sorted(seen) == sorted(predicted), phase


def a_few(num_ranks: int) -> list[Case]:
    """Of every implementation."""
    found: dict[str, list[Case]] = {}
    for case in cases(num_ranks):
        found.setdefault(case[2][0].implementation, []).append(case)
    return [case for of_name in found.values() for case in of_name[:: 1 + len(of_name) // 5]]


def without_data(num_ranks: int) -> list[dict[str, list[tuple[str, int]]]]:
    """What the first of some ranks would tell the others, on tensors that hold no data."""
    dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_ranks)
    mesh, found = axis_groups(num_ranks), []
    given = [(case, laid(placed(case[1], *case[2]), case[3], (num_ranks,), 0)[0]) for case in a_few(num_ranks)]
    with FakeTensorMode():
        for (_, node, options, _), held in given:
            leaves = {
                v: torch.empty(t.shape, dtype=t.dtype, requires_grad=v in node.gradients) for v, t in held.items()
            }
            with Counting() as forward:
                made = run_on(node, placed(node, *options), mesh, leaves)
            outputs = [t for v, t in made.items() if t is not None and t.requires_grad and v in node.gradients]
            with Counting() as backward:
                torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])
            found.append({"forward": forward.seen, "backward": backward.seen})
    return found


def test_without_data_ranks_tell_each_other_what_is_predicted() -> None:
    (found,) = run_ranks(1, without_data, 2)
    for (name, node, options, _), told in zip(a_few(2), found, strict=True):
        inside = traffic.Node(sized(node), node.shapes, (2,), placed(node, *options), node.gradients)
        for phase in ("forward", "backward"):
            predicted = sorted((t.kind, t.num_bytes) for t in traffic.told(inside) if t.phase == phase)
            assert sorted(told[phase]) == predicted, f"{name} {options} {phase}"
