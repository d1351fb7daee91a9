"""What named implementations communicate, against the collectives' own formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from costmodels import communication
from planner.execution import EAGER
from planner.graph import Block
from planner.layouts.placements import Shape
from planner.layouts.strategies import OpNode, block_nodes
from planner.solvers.block_layout.implementations import implementation_s
from planner.solvers.experts import dispatch_s, find_experts
from tests.planner.layouts.small import graph
from tests.planner.solvers.block_layout.cases import mesh_of
from tests.planner.solvers.block_layout.hand import CLUSTER, written

[RANKS] = mesh_of(CLUSTER, 4).groups
BUSY = 1.0, 2.0


def of_one(
    block: Block, name: str, local: dict[str, Shape], names: list[str], computing_s: tuple[float, float] = BUSY
) -> tuple[float, float]:
    """Seconds of a block's only operation, given shapes on one device."""
    node = block_nodes(block, [value.shape(1, 1) for value in block.values])[0]
    shapes = {names.index(v): shape for v, shape in local.items()}
    return implementation_s(block, node, name, RANKS, shapes, computing_s, EAGER, along=2)


def one(target: str, values: dict[str, Shape], reads: list[Any], makes: list[str], **given: Any) -> Block:
    tensors = [v for v in values if v not in makes]
    block = written(values, [], tensors, [(target, *reads, makes[0])], makes[:1], **given)
    outputs = tuple(list(values).index(v) for v in makes)
    return replace(block, ops=(replace(block.ops[0], outputs=outputs),))


def test_a_mean_counts_its_rows_in_one_number() -> None:
    values: dict[str, Shape] = {"x": (64, 32), "labels": (64,), "loss": (), "weight": ()}
    block = one("nll_loss_forward.default", values, ["x", "labels", None, 1, -100], ["loss", "weight"])
    found = of_one(block, "mean_count", {"x": (16, 32), "labels": (16,), "loss": (), "weight": ()}, list(values))
    assert found == (communication.all_reduce_s(RANKS, 4), 0.0)


def test_a_loss_over_sharded_classes_reduces_three_numbers_of_each_row() -> None:
    values: dict[str, Shape] = {"x": (64, 32), "y": (64, 32)}
    block = one("_log_softmax.default", values, ["x", 1, False], ["y"])
    found = of_one(block, "loss_parallel", {"x": (64, 8), "y": (64, 8)}, list(values))
    assert found == pytest.approx((3 * communication.all_reduce_s(RANKS, 64 * 4), 0.0))


@pytest.mark.parametrize(("target", "makes", "rows"), [
    ("rms_norm.default", {"y": (64, 8), "root": (64, 1)}, 64),
    ("native_layer_norm.default", {"y": (64, 8), "mean": (64, 1), "root": (64, 1)}, 64),
    ("_softmax.default", {"y": (64, 8)}, 64),
])  # fmt: skip
def test_statistics_of_rows_are_two_numbers_of_each_in_either_pass(
    target: str, makes: dict[str, Shape], rows: int
) -> None:
    whole = {v: (64, 32) if v == "y" else shape for v, shape in makes.items()}
    values: dict[str, Shape] = {"x": (64, 32), **whole}
    block = one(target, values, ["x", 1, False], list(makes))
    seconds = communication.all_reduce_s(RANKS, 2 * rows * 4)
    assert of_one(block, "statistics", {"x": (64, 8), **makes}, list(values)) == (seconds, seconds)


def test_statistics_of_channels_are_two_numbers_of_each() -> None:
    values: dict[str, Shape] = {"x": (16, 8, 6, 6), "y": (16, 8, 6, 6), "mean": (8,), "root": (8,)}
    block = one("_native_batch_norm_legit.no_stats", values, ["x", None, None, True, 0.1, 1e-5], ["y", "mean", "root"])
    found = of_one(block, "sync", values | {"x": (4, 8, 6, 6), "y": (4, 8, 6, 6)}, list(values))
    assert found == (communication.all_reduce_s(RANKS, 2 * 8 * 4),) * 2


@pytest.mark.parametrize("attention_s", [0.0, 1.0])
def test_keys_travel_round_behind_attention(attention_s: float) -> None:
    """Three steps of a quarter of keys and values; backward with their gradients. Nothing is seen behind a second."""
    heads: Shape = (2, 8, 1024, 64)
    values = dict.fromkeys(("q", "k", "v", "out"), heads) | {"lse": heads[:3]}
    block = one("attention.default", values, ["q", "k", "v", None, True], ["out", "lse"], dtype="bfloat16")
    part: Shape = (2, 8, 256, 64)
    local = dict.fromkeys(("q", "k", "v", "out"), part) | {"lse": part[:3]}
    found = of_one(block, "ring", local, list(values), computing_s=(attention_s, attention_s))
    around = communication.all_gather_s(RANKS, 4 * 2 * 2 * 2 * 8 * 256 * 64)
    assert found == pytest.approx((0.0, 0.0) if attention_s else (around, 2 * around))


@pytest.mark.parametrize(("kernel", "border"), [(3, 2), (5, 4), (1, 0)])
def test_a_convolution_gets_the_rows_that_its_kernel_reaches_beyond_its_own(kernel: int, border: int) -> None:
    values: dict[str, Shape] = {"x": (2, 4, 32, 32), "w": (8, 4, kernel, kernel), "y": (2, 8, 32, 32)}
    pad = (kernel // 2,) * 2
    given = ["x", "w", None, (1, 1), pad, (1, 1), False, (0, 0), 1]
    block = one("convolution.default", values, given, ["y"])
    local = values | {"x": (2, 4, 8, 32), "y": (2, 8, 8, 32)}
    seconds = communication.send_recv_s(RANKS, border * 2 * 4 * 32 * 4)
    assert of_one(block, "halo", local, list(values)) == (seconds, seconds)


@pytest.mark.parametrize("family", ["mixtral", "qwen", "mla"])
def test_tokens_are_dispatched_and_combined_in_either_pass(family: str) -> None:
    """Twice each: of 2 samples with 8 tokens of width 32, a device has a quarter."""
    made = graph(family)
    block = next(block for block in made.blocks if find_experts(block))
    shapes = [value.shape(2, 8) for value in block.values]
    experts = find_experts(block)
    node = next(
        node for node in block_nodes(block, shapes) if any(o.implementation == "dispatch" for o in node.options)
    )
    option = next(o for o in node.options if o.implementation == "dispatch")
    local = {v: share(shapes[v], p.kind, p.dim) for v, p in zip(node.inputs, option.inputs, strict=True)}
    assert experts is not None
    seconds = 2 * dispatch_s(experts, RANKS, 2 * 8 * 32 / 4 * element(block, node), once=EAGER.dispatch_once)
    found = implementation_s(block, node, "dispatch", RANKS, local, BUSY, EAGER)
    assert found == pytest.approx((seconds, seconds))


def share(shape: Shape, kind: str, dim: int) -> Shape:
    return tuple(size // 4 if kind == "S" and d == dim else size for d, size in enumerate(shape))


def element(block: Block, node: OpNode) -> int:
    [dtype] = {block.values[v].dtype for v in node.outputs if block.values[v].dtype in ("float32", "bfloat16")}
    return {"float32": 4, "bfloat16": 2}[dtype]


@pytest.mark.parametrize("name", ["local", "context_all_gather"])
def test_what_communicates_on_the_edges_alone_costs_nothing_more(name: str) -> None:
    values: dict[str, Shape] = {"x": (8, 8), "y": (8, 8)}
    assert of_one(one("relu.default", values, ["x"], ["y"]), name, dict(values), list(values)) == (0.0, 0.0)
