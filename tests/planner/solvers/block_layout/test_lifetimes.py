"""What blocks keep, and from when to when: intervals written by hand, and what pricing a block whole says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import pytest

from planner.layouts.tensor_parallel import analyse
from planner.solvers.block_layout.model_layout import PlacedSegment
from planner.solvers.block_layout.problem import BlockProblem
from planner.solvers.block_layout.solving import solve_layouts
from planner.solvers.prices import price_block
from tests.planner.solvers.block_layout.cases import SMALL, llama, mesh_of
from tests.planner.solvers.block_layout.hand import chosen, problem_of, written

T, D, H = 1024, 512, 2048
X, Y, STATES = 4 * T * D, 4 * T * H, 16 * 2 * D * H
MLP = written(
    {"x": (T, D), "w1": (D, H), "w2": (H, D), "y": (T, H), "z": (T, D)}, ["x"], ["w1", "w2"],
    [("mm.default", "x", "w1", "y"), ("mm.default", "y", "w2", "z")], ["z"], saved=["y"],
)  # fmt: skip
MEGATRON = {"w1": "S(1)", "w2": "S(0)", "#0": "B, S(1), S(1)", "#1": "S(1), S(0), P", "exit": "S(0)"}
ROWS = {"w1": "R", "w2": "R", "#0": "S(0), B, S(0)", "#1": "S(0), B, S(0)", "entry": "S(0)", "exit": "S(0)"}


def placed(problem: BlockProblem, texts: Mapping[str, str]) -> PlacedSegment:
    return PlacedSegment(problem, chosen(problem, texts))


@pytest.mark.parametrize(("texts", "states", "activations"), [
    (ROWS, STATES, X / 4 + Y / 4),
    (ROWS | {"w1": "S(0)", "w2": "S(1)"}, STATES / 4, X / 4 + Y / 4),
    (MEGATRON | {"entry": "R"}, STATES / 4, X + Y / 4),
    (MEGATRON | {"entry": "S(0)"}, STATES / 4, X + Y / 4),  # gathered, and kept so
])  # fmt: skip
def test_activations_are_kept_as_their_reader_has_them_and_parameters_as_they_rest(
    texts: Mapping[str, str], states: float, activations: float
) -> None:
    assert placed(problem_of(MLP, 4), texts).kept == (states, activations)


@pytest.mark.parametrize(("texts", "part", "used"), [(ROWS, 4, 1), (MEGATRON | {"entry": "R"}, 1, 4)])
def test_the_peak_is_that_of_the_intervals(texts: Mapping[str, str], part: int, used: int) -> None:
    """A weight is there while it is used, and its gradient beside it in the backward pass.

    Three operations, two of them forward: the turn is at 3, the second product at 1 and 5, the first at 0 and 6.
    """
    segment = placed(problem_of(MLP, 4), texts)
    states, _ = segment.kept
    x, y, z = X / part, Y / 4, X / part
    intervals = [(0, 7, x), (1, 6, y), (0, 1, y), (6, 7, y), (1, 2, z), (5, 6, z)]  # kept, made, and their gradients
    weight = 4 * D * H / used
    intervals += [(0, 1, weight), (1, 2, weight), (5, 6, 2 * weight), (6, 7, 2 * weight)]
    peak = max(sum(size for start, end, size in intervals if start <= t < end) for t in range(7))
    assert segment.peak_bytes == states + peak


def test_what_several_operations_read_is_kept_once() -> None:
    block = written(
        {"x": (T, D), "w1": (D, H), "w2": (D, H), "y": (T, H), "z": (T, H), "sum": (T, H)}, ["x"], ["w1", "w2"],
        [("mm.default", "x", "w1", "y"), ("mm.default", "x", "w2", "z"), ("add.Tensor", "y", "z", "sum")], ["sum"],
    )  # fmt: skip
    columns = "B, S(1), S(1)"
    texts = {"w1": "S(1)", "w2": "S(1)", "#0": columns, "#1": columns, "#2": "S(1), S(1), S(1)", "entry": "S(0)",
             "exit": "S(1)", f"meeting {block.inputs[0]}": "B"}  # fmt: skip
    assert placed(problem_of(block, 4), texts).kept == (STATES / 4, X)


def test_what_only_the_backward_pass_reads_is_kept_as_it_was_made() -> None:
    """A norm's factor for each row."""
    block = written(
        {"x": (T, D), "w": (D,), "y": (T, D), "root": (T, 1), "z": (T, D)}, ["x"], ["w"],
        [("rms_norm.default", "x", "w", 1, "y"), ("relu.default", "y", "z")], ["z"], saved=["root"],
    )  # fmt: skip
    norm = replace(block.ops[0], outputs=(2, 3))
    block = replace(block, ops=(norm, *block.ops[1:]))
    texts = {"w": "R", "#0": "S(0), B, S(0), S(0)", "#1": "S(0), S(0)", "entry": "S(0)", "exit": "S(0)"}
    assert placed(problem_of(block, 4), texts).kept == (16 * D, (X + 4 * T) / 4)


def test_views_keep_nothing() -> None:
    block = written({"x": (T, D), "y": (D, T), "z": (T, D)}, ["x"], [],
                    [("t.default", "x", "y"), ("t.default", "y", "z")], ["z"])  # fmt: skip
    shared = tuple(replace(value, storage=0) for value in block.values)
    problem = problem_of(replace(block, values=shared), 4)
    texts = {"#0": "S(0), S(1)", "#1": "S(1), S(0)", "entry": "S(0)", "exit": "S(0)"}
    segment = placed(problem, texts)
    assert segment.peak_bytes == sum(segment.kept) == X / 4


def test_under_data_parallelism_a_device_keeps_what_its_own_samples_save() -> None:
    setting = llama("h100-sxm:8x1", batch=64, seq_len=512, precision="fp32", **SMALL)
    segments = solve_layouts(setting, mesh_of(setting.cluster, 8), batch=64).best.segments
    for segment, found in zip(setting.graph.segments[1:], segments[1:], strict=True):
        block = setting.graph.blocks[segment.block]
        whole = price_block(
            block, analyse(block), setting.cluster, tp=1, sequence_parallel=False, batch=8, seq_len=512,
            recomputable=False, trained=setting.trained[segment.block], execution=setting.execution,
        )  # fmt: skip
        numel = sum(prod(block.values[v].shape(1, 1)) for _, v in block.params)
        if segment.prefix:  # the head may be sharded
            assert found.kept == (16 * numel, whole.saved_bytes["none"])
