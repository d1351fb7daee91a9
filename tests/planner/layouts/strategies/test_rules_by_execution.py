"""Every option of every operation that a rule knows, against real numbers; and wrong ones, which must not pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from planner.layouts import rules
from planner.layouts.placements import BROADCAST, PARTIAL, REPLICATE, Placement, shard
from planner.layouts.relations import Rule
from planner.layouts.rules import FAMILIES, pointwise
from planner.layouts.strategies import Option, differentiable
from planner.layouts.strategies.factors import OpFactors
from planner.layouts.strategies.nodes import node_of
from tests.planner.layouts.strategies.calls import Call, Sizes, block_of
from tests.planner.layouts.strategies.cases import CASES
from tests.planner.layouts.strategies.harness import Whole, check, run_whole
from tests.planner.layouts.strategies.running import Node

BACKWARD = ("_backward", "_backward_data")
"""Endings of calls that only the flow through a block relates."""


def calls(family: str, seed: int) -> list[Call]:
    return list(CASES[family](Sizes(torch.Generator().manual_seed(seed))))


def nodes(call: Call) -> Iterator[tuple[Node, dict[int, Tensor]]]:
    """The operation by itself, and with every even dim in two parts, as the rest of a block may have found."""
    block, tensors = block_of(call)
    shapes = [value.shape(1, 1) for value in block.values]
    gradients = differentiable(block)
    for halves in (False, True):

        def parts(value: int, halves: bool = halves) -> list[list[int]]:
            return [[2, size // 2] if halves and size % 2 == 0 else [size] for size in shapes[value]]

        node = node_of(OpFactors(block, shapes, parts), (0,), gradients)
        yield Node(block, shapes, node, gradients), tensors


def check_all(call: Call, num_ranks: int, random: torch.Generator) -> int:
    """Check every option of a call; how many there were."""
    count = 0
    for node, tensors in nodes(call):
        whole = run_whole(node, {v: tensors[v] for v in node.node.inputs}, random)
        for option in node.node.options:
            if option.splits(num_ranks):
                try:
                    check(node, option, num_ranks, whole, random)
                except Exception as wrong:
                    shapes = [node.shapes[v] for v in (*node.node.inputs, *node.node.outputs)]
                    raise AssertionError(f"{call[0]} {shapes} {option} on {num_ranks} ranks") from wrong
                count += 1
    return count


@pytest.mark.parametrize(("seed", "num_ranks"), [(0, 2), (1, 3), (2, 4), (3, 2), (4, 3)])
@pytest.mark.parametrize("family", CASES)
def test_every_option_gives_the_values_and_gradients_of_the_whole(family: str, seed: int, num_ranks: int) -> None:
    random = torch.Generator().manual_seed(seed)
    assert sum(check_all(call, num_ranks, random) for call in calls(family, seed)) >= 6


def test_every_rule_is_executed() -> None:
    executed = {family: {call[0].partition(".")[0].rstrip("_") for call in calls(family, 0)} for family in CASES}
    for family, named in FAMILIES.items():
        forward = {name for name in named if not name.endswith(BACKWARD)}
        assert forward <= executed[family], family


def test_no_operation_has_two_rules() -> None:
    names = [name for named in FAMILIES.values() for name in named]
    assert len(names) == len(set(names)) == len(rules.RULES)


def _sizes() -> Sizes:
    return Sizes(torch.Generator().manual_seed(5))


PLAIN: dict[str, Any] = {
    "product": lambda s: ("mm.default", s.x(4, 6), s.x(6, 8)),
    "product with bias": lambda s: ("addmm.default", s.x(8), s.x(4, 6), s.x(6, 8)),
    "scaled": lambda s: ("mul.Tensor", s.x(4, 6), s.x(6)),
    "added": lambda s: ("add.Tensor", s.x(4, 6), s.x(6)),
    "norm": lambda s: ("rms_norm.default", s.x(4, 6), s.x(6), 1),
    "softmax": lambda s: ("_softmax.default", s.x(4, 6), -1, False),
    "running sum": lambda s: ("cumsum.default", s.x(4, 6), 1),
    "sum": lambda s: ("sum.dim_IntList", s.x(4, 6), (0,)),
    "mean": lambda s: ("mean.dim", s.x(4, 6), (0,)),
    "lookup": lambda s: ("embedding.default", s.x(6, 4), s.ids(6, 2, 4)),
    "flattened": lambda s: ("view.default", s.x(4, 6, 2), (24, 2)),
    "split": lambda s: ("split.Tensor", s.x(4, 6), 3, 1),
    "attention": lambda s: ("attention.default", s.x(2, 4, 2, 6), s.x(2, 4, 2, 6), s.x(2, 4, 2, 6), None, False),
}


@pytest.mark.parametrize("name", PLAIN)
def test_an_option_with_one_wrong_placement_fails(name: str) -> None:
    """Whatever is changed about one placement of a right option: unless that is another right one, numbers differ."""
    random = torch.Generator().manual_seed(0)
    node, tensors = next(nodes(PLAIN[name](_sizes())))
    whole = run_whole(node, {v: tensors[v] for v in node.node.inputs}, random)
    right = {(option.inputs, option.outputs) for option in node.node.options} | RIGHT_AS_WELL
    wrong = {
        (mutant.inputs, mutant.outputs): mutant
        for option in node.node.options
        for mutant in _mutants(node, option)
        if option.implementation == "local" and (mutant.inputs, mutant.outputs) not in right
    }
    assert len(wrong) >= 8
    assert [mutant for mutant in wrong.values() if _passes(node, mutant, whole, random)] == []


RIGHT_AS_WELL = {((PARTIAL, REPLICATE), (PARTIAL,))}
"""Not offered: a lookup in a table that is a partial sum."""


def _passes(node: Node, option: Option, whole: Whole, random: torch.Generator) -> bool:
    try:
        check(node, option, 2, whole, random)
    except (AssertionError, IndexError, RuntimeError, ValueError):  # wrong numbers, or shapes that do not fit
        return False
    return True


def _mutants(node: Node, option: Option) -> Iterator[Option]:
    for name, values in (("inputs", node.node.inputs), ("outputs", node.node.outputs)):
        places: tuple[Placement, ...] = getattr(option, name)
        for i, v in enumerate(values):
            kinds = [PARTIAL, REPLICATE, *([BROADCAST] if v in node.gradients else [])]
            others = [*kinds, *(shard(d) for d in range(len(node.shapes[v])))]
            for other in others:
                fits = other.kind != "S" or node.shapes[v][other.dim] % 2 == 0
                if other != places[i] and fits and (v in node.checked or name == "inputs"):
                    yield replace(option, **{name: (*places[:i], other, *places[i + 1 :])})


WRONG: dict[str, tuple[str, Rule]] = {
    "a softmax's dim is free": ("_softmax", pointwise.like_first),
    "a running sum's dim is free": ("cumsum", pointwise.like_first),
    "an ordered dim is free": ("sort", pointwise.like_first),
    "places change along a free dim": ("flip", pointwise.like_first),
    "statistics of each shard alone": ("rms_norm", pointwise.elementwise),
    "what is cut off is pointwise": ("tril", pointwise.like_first),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, rule = WRONG[name]
    family = next(family for family, named in FAMILIES.items() if operation in named)
    call = next(call for call in calls(family, 0) if call[0].partition(".")[0] == operation)
    monkeypatch.setitem(rules.RULES, operation, rule)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match=operation):
        check_all(call, 2, torch.Generator().manual_seed(0))
