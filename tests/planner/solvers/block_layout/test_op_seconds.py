"""On a mesh of one device a block costs what pricing it whole says."""

from __future__ import annotations

from functools import cache
from math import prod

import pytest

from hardware_profiles.load import load_cluster
from planner import models, ops
from planner.capture.families import family_graph
from planner.execution import TORCH_EAGER
from planner.job import Job
from planner.layouts.tensor_parallel import analyse
from planner.solvers.block_layout.problem import BlockProblem, block_problem
from planner.solvers.passes import PassSeconds
from planner.solvers.prices import BlockPrice, price_block
from planner.solvers.setting import Setting
from tests.planner.solvers.block_layout.cases import mesh_of

BLOCKS = {"llama3-8b": 3, "gpt2": 3, "deepseek-v3": 4, "mixtral-8x7b": 3}
EVERY = [(name, i) for name, count in BLOCKS.items() for i in range(count)]
DENSE = [("llama3-8b", 1), ("llama3-8b", 2), ("gpt2", 1), ("gpt2", 2), ("deepseek-v3", 1), ("deepseek-v3", 3)]
BATCH, SEQ_LEN = 4, 1024
BACKWARD = {("gpt2", 0): None, ("gpt2", 1): 0.10, ("deepseek-v3", 2): 0.06, ("mixtral-8x7b", 1): 0.04}
"""Parts of the whole by which the backward pass may differ where that is more than 3 %. Gradients of biases are sums
that no forward operation stands for; an expert's permutations are others backward; gradients of two readers (all that
there is behind an embedding) are added without a price."""


@cache
def priced(name: str, block: int) -> tuple[BlockProblem, BlockPrice]:
    graph = family_graph(models.preset(name).config, seq_len=SEQ_LEN)
    cluster = load_cluster("h100-sxm:1x8")
    setting = Setting(graph, cluster, Job(global_batch=BATCH, seq_len=SEQ_LEN), TORCH_EAGER)
    found = graph.blocks[block]
    whole = price_block(
        found, analyse(found), cluster, tp=1, sequence_parallel=False, batch=BATCH, seq_len=SEQ_LEN, recomputable=False,
        trained=setting.trained[block], execution=TORCH_EAGER,
    )  # fmt: skip
    return block_problem(setting, block, mesh_of(cluster, 1), batch=BATCH), whole


def of_ops(problem: BlockProblem, names: set[str] | None = None) -> tuple[float, float]:
    """Seconds forward and backward of operations (of these names); on one device all strategies cost the same."""
    forward = backward = 0.0
    for choice, seconds in zip(problem.choices, problem.seconds, strict=True):
        if choice.op and (names is None or any(problem.values.block.ops[i].name in names for i in choice.op.ops)):
            assert seconds.min(axis=1) == pytest.approx(seconds.max(axis=1))
            forward, backward = forward + float(seconds[0, 0]), backward + float(seconds[1, 0])
    return forward, backward


def total(seconds: PassSeconds) -> float:
    return seconds.gemm + seconds.attention + seconds.memory_bound


@pytest.mark.parametrize(("name", "block"), EVERY)
def test_forward_seconds_are_those_of_the_block(name: str, block: int) -> None:
    problem, whole = priced(name, block)
    assert of_ops(problem)[0] == pytest.approx(total(whole.forward), rel=1e-9)


@pytest.mark.parametrize(("name", "block"), EVERY)
def test_backward_seconds_are_near_those_of_the_block(name: str, block: int) -> None:
    problem, whole = priced(name, block)
    part = BACKWARD.get((name, block), 0.03)
    if part is not None:
        assert of_ops(problem)[1] == pytest.approx(total(whole.backward), rel=part)


@pytest.mark.parametrize(("name", "block"), DENSE)
def test_products_and_attention_are_exact_in_both_passes(name: str, block: int) -> None:
    problem, whole = priced(name, block)
    assert of_ops(problem, ops.MATMUL) == pytest.approx((whole.forward.gemm, whole.backward.gemm), rel=1e-9)
    assert of_ops(problem, ops.ATTENTION) == pytest.approx(
        (whole.forward.attention, whole.backward.attention), rel=1e-9
    )


@pytest.mark.parametrize(("name", "block"), EVERY)
def test_what_is_held_for_the_backward_pass_is_what_the_block_saves(name: str, block: int) -> None:
    problem, whole = priced(name, block)
    held = sum(float(h[0]) for h, c in zip(problem.held, problem.choices, strict=True) if c.kind != "param")
    assert held == whole.saved_bytes["none"]


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_a_product_that_is_divided_costs_its_share_of_a_large_one(devices: int) -> None:
    """Every sharded strategy of a product on N devices is faster than the whole, none faster than a N-th."""
    graph = family_graph(models.preset("llama3-8b").config, seq_len=SEQ_LEN)
    cluster = load_cluster("h100-sxm:1x8")
    setting = Setting(graph, cluster, Job(global_batch=16, seq_len=SEQ_LEN), TORCH_EAGER)
    problem = block_problem(setting, 1, mesh_of(cluster, devices), batch=16)
    for choice, seconds in zip(problem.choices, problem.seconds, strict=True):
        if choice.op and problem.values.block.ops[choice.op.ops[0]].name == "mm":
            whole = max(float(seconds[0, s]) for s, strategy in enumerate(choice.strategies) if strategy.shares == 1)
            divided = [float(seconds[0, s]) for s, strategy in enumerate(choice.strategies) if strategy.shares > 1]
            assert divided
            assert all(whole / devices * 0.95 <= s < whole for s in divided)


def test_a_device_that_runs_all_experts_reads_all_their_weights() -> None:
    """However few its tokens; one that has its share of the experts reads that share."""
    graph = family_graph(models.preset("deepseek-v3").config, seq_len=SEQ_LEN)
    cluster = load_cluster("h100-sxm:1x8")
    setting = Setting(graph, cluster, Job(global_batch=1, seq_len=SEQ_LEN), TORCH_EAGER)
    problem = block_problem(setting, 2, mesh_of(cluster, 8), batch=1)
    [node] = [i for i, c in enumerate(problem.choices) if c.op and len(c.op.ops) > 1]
    choice = problem.choices[node]
    assert choice.op
    weights = [k for k, v in enumerate(choice.op.inputs) if v in problem.values.weights]
    numel = sum(prod(problem.values.shapes[choice.op.inputs[k]]) for k in weights)
    read_s = 2 * numel / cluster.device.memory_bytes_per_s
    local = [s for s, strategy in enumerate(choice.strategies) if strategy.options[0].implementation == "local"]
    by_tokens = [s for s in local if choice.strategies[s].shares == 8
                 and all(choice.strategies[s].inputs[k][0].kind == "B" for k in weights)]  # fmt: skip
    by_width = [s for s in local if choice.strategies[s].shares == 8 and s not in by_tokens]
    assert by_tokens
    assert by_width
    assert all(float(problem.seconds[node][0, s]) > read_s for s in by_tokens)
    assert all(read_s / 8 < float(problem.seconds[node][0, s]) < read_s / 4 for s in by_width)
