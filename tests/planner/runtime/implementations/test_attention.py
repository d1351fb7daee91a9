"""Rings and gathered keys under a causal mask, with sequences in zig-zag order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from planner.errors import UsageError
from planner.layouts.strategies import Option
from planner.runtime.implementations.kernels import attend, attend_backward
from planner.runtime.parts import reordered
from tests.planner.layouts.strategies.harness import Whole, run_whole
from tests.planner.layouts.strategies.running import Node
from tests.planner.layouts.strategies.test_rules_by_execution import nodes
from tests.planner.runtime.gloo import run_ranks
from tests.planner.runtime.meshes_by_hand import axis_groups
from tests.planner.runtime.rank_runs import Result, alone, compare, placed, rank_result, run_on

SEQUENCE = (0, 0, 1, 0)
HEADS = ((4, 4, 3), (4, 2, 3), (6, 1, 5))
"""Of queries, of keys, and the width of values beside keys of 3."""


def _numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def cases(num_ranks: int) -> tuple[tuple[Node, Option, Whole], ...]:
    """Causal attention over 16 positions, by both ways."""
    found = []
    for heads, kv_heads, width in HEADS:
        q, k, v = (_numbers(i, 2, n, 16, d) for i, (n, d) in enumerate(((heads, 3), (kv_heads, 3), (kv_heads, width))))
        node, tensors = next(nodes(("attention.default", q, k, v, None, True)))
        whole = run_whole(node, tensors, torch.Generator().manual_seed(0))
        found += [(node, o, whole) for o in node.node.options if o.implementation in ("ring", "context_all_gather")]
    return tuple(found)


def in_zigzag(tensors: Mapping[int, Tensor], zigzag: int) -> dict[int, Tensor]:
    return {v: reordered(t, SEQUENCE[: t.dim()], zigzag) for v, t in tensors.items()}


def zigzagged(whole: Whole, zigzag: int) -> Whole:
    return Whole(*(in_zigzag(t, zigzag) for t in (whole.inputs, whole.outputs, whole.output_grads, whole.input_grads)))


def run(num_ranks: int, zigzag: int) -> list[Result]:
    mesh, found = axis_groups(num_ranks, zigzag=zigzag), []
    for node, option, whole in cases(num_ranks):
        found.append(rank_result(node, placed(node, option), mesh, zigzagged(whole, zigzag)))
    return found


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_in_zigzag_order_all_is_that_of_one_device(num_ranks: int) -> None:
    results = run_ranks(num_ranks, run, num_ranks, num_ranks)
    for i, (node, option, whole) in enumerate(cases(num_ranks)):
        compare(node, placed(node, option), (num_ranks,), zigzagged(whole, num_ranks), [r[i] for r in results])


def test_another_order_gives_other_numbers() -> None:
    results = run_ranks(2, run, 2, 1)
    node, option, whole = cases(2)[0]
    with pytest.raises(AssertionError, match="output"):
        compare(node, placed(node, option), (2,), zigzagged(whole, 2), [of_rank[0] for of_rank in results])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_kernels_and_the_formula_agree(dtype: torch.dtype, causal: bool) -> None:
    q, k, v, grad = (_numbers(i, 2, n, 6, d).to(dtype) for i, (n, d) in enumerate(((4, 8), (2, 8), (2, 4), (4, 4))))
    none = torch.zeros(6, 6, dtype=dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    results = [attend(q, k, v, bias, causal=causal, scale=0.5) for bias in (None, none)]
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)
    out, lse = results[0]
    grads = [attend_backward(grad, q, k, v, out, lse, bias, causal=causal, scale=0.5)[:3] for bias in (None, none)]
    for ours, theirs in zip(*grads, strict=True):
        assert ours.dtype == dtype
        assert torch.allclose(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)


def test_scores_cannot_be_dropped() -> None:
    node, option, whole = next(case for case in cases(2) if case[1].implementation == "ring")
    op = node.ops[0]
    dropping = replace(op, args=(*op.args[:5], 0.1, None))
    block = replace(node.block, ops=(dropping,))
    changed = Node(block, node.shapes, node.node, node.gradients)
    with pytest.raises(UsageError, match=r"drops 0\.1 of its scores.*set the model's attention dropout to 0"):
        run_on(changed, placed(node, option), alone(2, rank=(0,)), whole.inputs)
