"""Every option of every operation that does not communicate, by the code of one rank, against one device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from planner.graph import Dim, Ref
from planner.layouts.placements import parse
from planner.layouts.strategies import Option
from planner.runtime.operations import operation
from planner.runtime.parts import reordered
from planner.runtime.site import Site
from planner.solvers.block_layout.detail import PlacedOp
from tests.planner.layouts import aten
from tests.planner.layouts.strategies.calls import Call
from tests.planner.layouts.strategies.cases import CASES
from tests.planner.layouts.strategies.harness import run_whole
from tests.planner.layouts.strategies.running import Node
from tests.planner.layouts.strategies.test_rules_by_execution import calls, nodes
from tests.planner.runtime.rank_runs import CPU, alone, call_of, check_in_turn, placed, run_on

UNDETERMINED = ("rand", "empty", "new_empty")
"""Operations whose results are whatever comes."""


@pytest.mark.parametrize(("seed", "num_ranks"), [(0, 2), (1, 3)])
@pytest.mark.parametrize("family", CASES)
def test_every_local_option_of_every_operation(family: str, seed: int, num_ranks: int) -> None:
    random, checked = torch.Generator().manual_seed(seed), 0
    for call in calls(family, seed):
        for node, tensors in nodes(call):
            whole = run_whole(node, {v: tensors[v] for v in node.node.inputs}, random)
            for option in node.node.options:
                if call[0].startswith(UNDETERMINED) or option.implementation != "local":
                    continue
                if option.splits(num_ranks):
                    try:
                        check_in_turn(node, option, num_ranks, whole)
                    except Exception as wrong:
                        shapes = [node.shapes[v] for v in (*node.node.inputs, *node.node.outputs)]
                        raise AssertionError(f"{call[0]} {shapes} {option} on {num_ranks} ranks") from wrong
                    checked += 1
    assert checked >= 6


def one(call: Call, *layouts: str, outputs: str, num_ranks: int = 2) -> tuple[Node, PlacedOp, dict[int, Tensor]]:
    """A call of one operation whose arguments and results lie so over one axis."""
    node, tensors = next(nodes(call))
    option = Option(tuple(map(parse, layouts)), tuple(parse(outputs) for _ in node.node.outputs))
    return node, placed(node, option), tensors


@pytest.mark.parametrize("target", ["native_dropout.default", "rand_like.default", "bernoulli_.float", "randn.default"])
def test_ranks_with_equal_seeds_draw_what_one_device_draws(target: str) -> None:
    x = torch.ones(6, 4, dtype=torch.float64)
    made: dict[str, Call] = {
        "native_dropout.default": (target, x, 0.5, True), "rand_like.default": (target, x),
        "bernoulli_.float": (target, x, 0.5), "randn.default": (target, (6, 4), "torch.float64"),
    }  # fmt: skip
    inputs = () if target.startswith("rand") else ("S(0)",)
    node, how, tensors = one(made[target], *inputs, outputs="S(0)")
    call = call_of(node.ops[0])
    torch.manual_seed(3)
    args = [tensors[a.value].clone() if isinstance(a, Ref) else a for a in call.args]
    expected = call.target(*args, **call.kwargs)
    expected = expected[0] if isinstance(expected, tuple) else expected
    parts = []
    for rank in range(2):
        torch.manual_seed(3)
        held = {v: tensors[v][3 * rank : 3 * rank + 3] for v in node.node.inputs}
        parts.append(run_on(node, how, alone(2, rank=(rank,)), held)[node.node.outputs[0]])
    assert torch.equal(torch.cat(parts), expected)
    assert expected.unique().numel() > 1


def test_the_row_that_pads_has_no_gradient_wherever_it_is() -> None:
    table, index = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 4, 4, 5, 1])
    node, how, tensors = one(("embedding.default", table, index, 4), "S(0)", "R", outputs="P")
    parts = [tensors[0][:3].clone().requires_grad_(), tensors[0][3:].clone().requires_grad_()]
    found = [run_on(node, how, alone(2, rank=(r,)), {0: parts[r], 1: index})[2] for r in range(2)]
    assert torch.equal(sum(found), table[index])
    grads = [torch.autograd.grad(out.sum(), part)[0] for out, part in zip(found, parts, strict=True)]
    assert torch.cat(grads)[:, 0].tolist() == [1, 1, 0, 0, 0, 1]


def test_dropped_attention_is_that_of_one_device() -> None:
    q, k, v = (torch.randn(2, heads, 5, 3, dtype=torch.float64) for heads in (4, 2, 2))
    node, how, _ = one(("attention.default", q, k, v, None, True, 0.3, None), *["S(1)"] * 3, outputs="S(1)")
    torch.manual_seed(1)
    expected = F.scaled_dot_product_attention(q, k, v, dropout_p=0.3, is_causal=True, enable_gqa=True)
    parts = []
    for rank in range(2):
        torch.manual_seed(1)
        held = dict(enumerate(t.chunk(2, 1)[rank] for t in (q, k, v)))
        parts.append(run_on(node, how, alone(2, rank=(rank,)), held)[3])
    assert torch.allclose(torch.cat(parts, 1), expected)


@pytest.mark.parametrize("reads_again", [False, True])
def test_what_is_written_into_changes_only_where_somebody_looks_again(reads_again: bool) -> None:
    """``2 = add_(0, 1)``, and then perhaps a reader of 0."""
    x, y = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    node, _ = next(nodes(("add_.Tensor", x, y)))
    values = tuple(replace(value, storage=i) for i, value in enumerate((*node.block.values, node.block.values[0])))
    values = (*values[:2], replace(values[2], storage=0), values[3])
    reader = replace(node.ops[0], target="neg.default", args=(Ref(0),), inputs=(0,), outputs=(3,))
    block = replace(node.block, values=values, ops=(node.ops[0], *([reader] if reads_again else [])))
    site = Site(block, block, [(4,)] * 4, {}, alone(1, rank=(0,)), CPU)
    result = operation(node.ops[0], call_of(node.ops[0]), site)({0: x, 1: y})
    assert torch.equal(result[2], y)
    assert torch.equal(x, y if reads_again else torch.zeros(4, dtype=torch.float64))


def test_what_counts_along_a_sequence_sees_it_in_its_own_order() -> None:
    x = torch.randn(2, 8, 3, dtype=torch.float64)
    for call in (("cumsum.default", x, 1), ("slice.Tensor", x, 1, 0, 4), ("flip.default", x, (1,))):
        node, _ = next(nodes(call))
        values = tuple(
            replace(v, dims=(*v.dims[:1], Dim(0, 1), *v.dims[2:])) if v.shape(1, 1)[1] == 8 else v
            for v in node.block.values
        )
        site = Site(
            node.block, replace(node.block, values=values), node.shapes, {}, alone(2, rank=(0,), zigzag=2), CPU
        )  # fmt: skip
        op, order = node.ops[0], (0, 1, 0)
        found = operation(op, call_of(op), site)({0: reordered(x, order, 2)})[1]
        (expected,) = aten.call(op, [x if isinstance(a, Ref) else a for a in op.args])
        assert torch.equal(found, reordered(expected, order if expected.shape[1] == 8 else (0, 0, 0), 2))
