"""docs/by_hand.md: every figure from its formula, from the traced graph, and as printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from costmodels.units import GIB, GIGA
from hardware_profiles.load import load_cluster
from planner.capture.sources import capture_model
from planner.graph import ModelGraph
from planner.job import Constraints, Job
from planner.solvers.search import model_flop, search
from planner.solvers.setting import Setting

PAGE = (Path(__file__).parents[1] / "docs" / "by_hand.md").read_text()
L, D, H, KV, DH, F, V, S = 32, 4096, 32, 8, 128, 14336, 128256, 8192
PARAMETERS = 2 * V * D + L * (D * (2 * H + 2 * KV) * DH + 3 * D * F + 2 * D) + D


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    return capture_model("llama3-8b", seq_len=S, compute_dtype="bfloat16")[0]


def test_parameters(graph: ModelGraph) -> None:
    assert graph.num_parameters == PARAMETERS
    for figure in (2 * V * D, D * (2 * H + 2 * KV) * DH, 3 * D * F, 2 * D, PARAMETERS):
        assert f"{figure:,}" in PAGE


def test_flop_per_token(graph: ModelGraph) -> None:
    weights = 6 * (PARAMETERS - V * D - (2 * L + 1) * D)
    forward, backward, again = 4 * S * H * DH * L, 8 * S * H * DH * L, 2 * S * H * DH * L
    total = weights + forward + backward
    assert model_flop(graph, seq_len=S) == S * total
    for figure in (weights, forward, backward, total, total + again, 6 * PARAMETERS + 12 * L * D * S):
        assert f"{figure / GIGA:.3f}" in PAGE
    assert f"{weights // 6:,}" in PAGE


def test_memory(graph: ModelGraph) -> None:
    cluster = load_cluster("h200-sxm:1x1")
    pins = Constraints(microbatch_size=1, recompute="none", memory_fraction=10.0)
    found = search(Setting(graph, cluster, Job(global_batch=1, seq_len=S)), pins, top=1).best[0]
    parts = found.costs.stage_memory(0, 0, len(graph.segments)).parts
    per_parameter = {"parameters": 4, "compute_copy": 2, "gradients": 4, "optimizer": 8}
    assert {name: parts[name] for name in per_parameter} == {n: b * PARAMETERS for n, b in per_parameter.items()}
    layer = 16 * D + 8 * F + 4 * H + 8
    head = 4 * D + 4 + 4 * V
    scalars = 4  # the number of labels that the loss is a mean over
    assert parts["activations"] == S * (L * layer + head) + scalars
    assert f"{layer:,}" in PAGE
    for size in (*(b * PARAMETERS for b in per_parameter.values()), S * L * layer, S * head, parts["activations"]):
        assert f"{size / GIB:.2f}" in PAGE
