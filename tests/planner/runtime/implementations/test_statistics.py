"""What a synchronised batch norm remembers, and pooling that does not count its padding."""

from __future__ import annotations

from functools import cache

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from planner.layouts.placements import parse
from planner.layouts.strategies import Option
from tests.planner.layouts.strategies.running import Node
from tests.planner.layouts.strategies.test_rules_by_execution import nodes
from tests.planner.runtime.gloo import run_ranks
from tests.planner.runtime.meshes_by_hand import axis_groups
from tests.planner.runtime.rank_runs import placed, run_on

EPS, MOMENTUM = 1e-5, 0.3


@cache
def images() -> Tensor:
    return torch.randn(4, 3, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def batch_norm() -> tuple[Node, dict[int, Tensor]]:
    weight, bias, mean, var = (torch.linspace(i, i + 1, 3, dtype=torch.float64) for i in range(4))
    return next(nodes(("native_batch_norm.default", images(), weight, bias, mean, var, True, MOMENTUM, EPS)))


def run() -> tuple[Tensor, ...]:
    rank, mesh = dist.get_rank(), axis_groups(2)
    node, tensors = batch_norm()
    option = Option((parse("S(0)"), *[parse("B")] * 2, *[parse("R")] * 2), (parse("S(0)"), *[parse("R")] * 2),
                    implementation="sync")  # fmt: skip
    held = {v: t.clone() for v, t in tensors.items()} | {0: images().chunk(2)[rank]}
    normed = run_on(node, placed(node, option), mesh, held)[5]
    node, _ = next(nodes(("avg_pool2d.default", images(), (3, 3), (1, 1), (1, 1), False, False)))
    option = Option((parse("S(2)"),), (parse("S(2)"),), implementation="halo")
    pooled = run_on(node, placed(node, option), mesh, {0: images().chunk(2, 2)[rank]})[1]
    return normed, held[3], held[4], pooled


@cache
def results() -> list[tuple[Tensor, ...]]:
    return run_ranks(2, run)


def test_running_statistics_are_those_of_all_samples_on_every_rank() -> None:
    _, tensors = batch_norm()
    mean, var = tensors[3].clone(), tensors[4].clone()
    expected = F.batch_norm(images(), mean, var, tensors[1], tensors[2], True, MOMENTUM, EPS)
    for rank, (normed, running_mean, running_var, _) in enumerate(results()):
        assert torch.allclose(normed, expected.chunk(2)[rank])
        assert torch.allclose(running_mean, mean) and torch.allclose(running_var, var)


def test_pooling_counts_no_padding_at_the_borders_of_the_whole() -> None:
    expected = F.avg_pool2d(images(), 3, 1, 1, count_include_pad=False)
    assert torch.allclose(torch.cat([pooled for *_, pooled in results()], 2), expected)
