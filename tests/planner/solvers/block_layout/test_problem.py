"""Problems of blocks written by hand: every second of them from the formulas."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from costmodels import communication, compute, memory
from planner.solvers.block_layout.choices import Edge
from planner.solvers.block_layout.problem import BlockProblem
from planner.solvers.block_layout.strategies import Strategy
from planner.solvers.intra_op import project
from tests.planner.solvers.block_layout.cases import mesh_of
from tests.planner.solvers.block_layout.hand import CLUSTER, chosen, layout, problem_of, setting_of, written

T, D, H = 1024, 512, 2048
MLP = written(
    {"x": (T, D), "w1": (D, H), "w2": (H, D), "y": (T, H), "z": (T, D)}, ["x"], ["w1", "w2"],
    [("mm.default", "x", "w1", "y"), ("mm.default", "y", "w2", "z")], ["z"],
)  # fmt: skip
TWICE = written(
    {"x": (T, D), "w": (D, D), "y": (T, D), "z": (T, D)}, ["x"], ["w"],
    [("mm.default", "x", "w", "y"), ("mm.default", "y", "w", "z")], ["z"],
)  # fmt: skip
[GROUP] = mesh_of(CLUSTER, 4).groups


def product(m: int, n: int, k: int, dtype: str = "float32") -> float:
    """Forward and both gradients of ``[m, k] x [k, n]``."""
    sizes = ((m, n, k), (m, k, n), (k, n, m))
    device = CLUSTER.device
    return sum(compute.gemm_s(device, dtype, batch=1, m=a, n=b, k=c, sustained=True) for a, b, c in sizes)


def update(numel: float, precision: str = "fp32") -> float:
    moved = memory.optimizer_step_bytes(precision=memory.PRECISIONS[precision], num_states=2, numel=numel)
    return compute.memory_bound_s(CLUSTER.device, moved, "optimizer")


def test_tensor_parallelism_of_two_products_costs_what_the_formulas_say() -> None:
    problem = problem_of(MLP, 4)
    texts = {"entry": "R", "exit": "R", "w1": "S(1)", "w2": "S(0)", "#0": "B, S(1), S(1)", "#1": "S(1), S(0), P"}
    reduced = communication.all_reduce_s(GROUP, 4 * T * D)
    expected = product(T, H // 4, D) + product(T, D, H // 4) + 2 * reduced + 2 * update(D * H / 4)
    assert problem.problem.cost(chosen(problem, texts)) == pytest.approx(expected)


def test_data_parallelism_reduces_each_gradient_once() -> None:
    problem = problem_of(MLP, 4)
    rows = "S(0), B, S(0)"
    texts = {"entry": "S(0)", "exit": "S(0)", "w1": "R", "w2": "R", "#0": rows, "#1": rows}
    reduced = communication.all_reduce_s(GROUP, 4 * D * H)
    expected = product(T // 4, H, D) + product(T // 4, D, H) + 2 * reduced + 2 * update(D * H)
    assert problem.problem.cost(chosen(problem, texts)) == pytest.approx(expected)


@pytest.mark.parametrize(("precision", "dtype", "value", "gradient"), [
    ("fp32", "float32", 4, 4), ("bf16", "bfloat16", 2, 4), ("bf16-reduced", "bfloat16", 2, 2),
])  # fmt: skip
def test_a_sharded_parameter_is_gathered_twice_and_its_gradient_scattered_once_in_their_precisions(
    precision: str, dtype: str, value: int, gradient: int
) -> None:
    block = written({"x": (T, D), "w": (D, H), "y": (T, H)}, ["x"], ["w"], [("mm.default", "x", "w", "y")], ["y"],
                    dtype=dtype)  # fmt: skip
    problem = problem_of(block, 4, precision=precision)
    texts = {"entry": "S(0)", "exit": "S(0)", "w": "S(1)", "#0": "S(0), B, S(0)"}
    gathered = communication.all_gather_s(GROUP, value * D * H)
    scattered = communication.reduce_scatter_s(GROUP, gradient * D * H)
    expected = product(T // 4, H, D, dtype) + 2 * gathered + scattered + update(D * H / 4, precision)
    assert problem.problem.cost(chosen(problem, texts)) == pytest.approx(expected)


def test_an_activation_is_gathered_once() -> None:
    problem = problem_of(MLP, 4)
    texts = {"entry": "S(0)", "exit": "S(0)", "w1": "S(1)", "w2": "S(0)", "#0": "B, S(1), S(1)", "#1": "S(1), S(0), P"}
    around = communication.all_gather_s(GROUP, 4 * T * D) + communication.reduce_scatter_s(GROUP, 4 * T * D)
    expected = product(T, H // 4, D) + product(T, D, H // 4) + 2 * around + 2 * update(D * H / 4)
    assert problem.problem.cost(chosen(problem, texts)) == pytest.approx(expected)


def test_a_parameter_that_two_operations_read_meets_once() -> None:
    problem = problem_of(TWICE, 4)
    meetings = [i for i, choice in enumerate(problem.choices) if choice.kind == "meeting"]
    assert len(meetings) == 1
    assert [pair[0] for pair in problem.problem.edges].count(meetings[0]) == 2
    weight = dict(TWICE.params)["w"]
    rows = "S(0), B, S(0)"
    texts = {"entry": "S(0)", "exit": "S(0)", "w": "S(0)", f"meeting {weight}": "B", "#0": rows, "#1": rows}
    gathered = 2 * communication.all_gather_s(GROUP, 4 * D * D) + communication.reduce_scatter_s(GROUP, 4 * D * D)
    expected = 2 * product(T // 4, D, D) + gathered + update(D * D / 4)
    assert problem.problem.cost(chosen(problem, texts)) == pytest.approx(expected)


def test_what_is_not_trained_has_no_gradient_to_reduce_and_no_step() -> None:
    frozen = replace(MLP, param_grads=MLP.param_grads[:1])
    rows = "S(0), B, S(0)"
    texts = {"entry": "S(0)", "exit": "S(0)", "w1": "R", "w2": "R", "#0": rows}
    problem = problem_of(frozen, 4)
    found = problem.problem.cost(chosen(problem, texts | {"#1": "S(0), R, S(0)"}))
    trained = problem_of(MLP, 4)
    both = trained.problem.cost(chosen(trained, texts | {"#1": rows}))
    gradient = compute.gemm_s(CLUSTER.device, "float32", batch=1, m=H, n=D, k=T // 4, sustained=True)
    own = communication.all_reduce_s(GROUP, 4 * D * H) + update(D * H) + gradient
    assert found == pytest.approx(both - own)
    assert kept(problem, "w2", "R") == 4 * D * H
    assert kept(trained, "w2", "R") == 16 * D * H


def kept(problem: BlockProblem, fqn: str, text: str) -> float:
    [i] = [i for i, choice in enumerate(problem.choices) if choice.fqn == fqn]
    return float(problem.held[i][problem.choices[i].layouts.index(layout(text))])


@pytest.mark.parametrize("text", ["R", "S(0)", "S(1)"])
def test_pins_are_obeyed(text: str) -> None:
    problem = problem_of(MLP, 4, pins={"w1": {"a": layout(text)[0]}})
    layouts = {choice.fqn: choice.layouts for choice in problem.choices if choice.kind == "param"}
    assert layouts["w1"] == (layout(text),)
    assert len(layouts["w2"]) == 3


def test_a_pin_of_one_axis_leaves_the_other_free() -> None:
    problem = problem_of(MLP, 2, 2, pins={"w1": {"b": layout("S(1)")[0]}})
    [layouts] = [choice.layouts for choice in problem.choices if choice.fqn == "w1"]
    assert {found[1] for found in layouts} == {layout("S(1)")[0]}
    assert {found[0] for found in layouts} == {layout(text)[0] for text in ("R", "S(0)", "S(1)")}


def test_activations_at_one_border_lie_alike_where_their_shapes_allow() -> None:
    """Of ``[8, 12, 4]`` and ``[8, 6]``: no axis of 4 divides 6, and the second has no third dim."""
    block = written(
        {"x": (8, 12, 4), "y": (8, 6), "u": (8, 12, 4), "v": (8, 6)}, ["x", "y"], [],
        [("relu.default", "x", "u"), ("relu.default", "y", "v")], ["u", "v"],
    )  # fmt: skip
    problem = problem_of(block, 4)
    assert problem.entry is not None
    border = [layout(text) for text in ("R", "S(0)", "S(1)", "S(2)")]
    assert list(problem.choices[problem.entry].layouts) == list(problem.choices[problem.exit].layouts) == border
    at = {block.inputs[0]: border, block.inputs[1]: [border[0], border[1], border[0], border[0]]}
    entering = {edge.value: list(edge.have) for pair, edge in edges(problem) if pair[0] == problem.entry}
    leaving = {edge.value: list(edge.want) for pair, edge in edges(problem) if pair[1] == problem.exit}
    assert entering == at
    assert list(leaving.values()) == list(at.values())


def edges(problem: BlockProblem) -> list[tuple[tuple[int, int], Edge]]:
    return list(zip(problem.problem.edges, problem.edges, strict=True))


def test_a_stretch_that_nothing_enters_has_no_entry_and_a_loss_leaves_whole() -> None:
    block = written({"w": (8, 8), "u": (8, 8), "loss": ()}, [], ["w"],
                    [("relu.default", "w", "u"), ("sum.default", "u", "loss")], ["loss"])  # fmt: skip
    problem = problem_of(block, 2, 2)
    assert problem.entry is None
    assert problem.choices[problem.exit].layouts == (layout("R R"),)


def test_all_strategies_of_an_operation_share_its_work_or_repeat_it() -> None:
    """Priced by hand: rows, columns and depth of each product over one axis of 4."""
    problem = problem_of(MLP, 4)
    [costs] = [costs for choice, costs in zip(problem.choices, problem.problem.costs, strict=True)
               if choice.op and choice.op.ops == (0,)]  # fmt: skip
    [strategies] = [choice.strategies for choice in problem.choices if choice.op and choice.op.ops == (0,)]
    sizes = {"S(0), B": (T // 4, H, D), "B, S(1)": (T, H // 4, D), "S(1), S(0)": (T, H, D // 4)}
    for strategy, cost in zip(strategies, costs, strict=True):
        assert cost == pytest.approx(product(*sizes.get(read(strategy), (T, H, D))))
    assert {read(strategy) for strategy in strategies} >= sizes.keys()


def read(strategy: Strategy) -> str:
    return ", ".join(str(found[0]) for found in strategy.inputs)


def test_the_best_of_two_products_is_the_least_of_all_choices() -> None:
    problem = problem_of(MLP, 2)
    least = inf
    for choice in np.ndindex(*(len(costs) for costs in problem.problem.costs)):
        least = min(least, problem.problem.cost(choice))
    assert float(project(problem.problem, [problem.exit]).table.min()) == pytest.approx(least)
    assert setting_of(MLP).trained == (frozenset({"w1", "w2"}),)
