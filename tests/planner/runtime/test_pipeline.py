"""Every schedule against the whole model, with every way of sharding that it can have."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from costmodels.memory import PRECISIONS
from costmodels.schedules import make
from planner.runtime.data_parallel import shard_units
from planner.runtime.meshes import make_meshes
from planner.runtime.pipeline import Pipeline, StageRunner, add_tied_gradients, make_ties
from planner.runtime.recompute import recomputed
from tests.planner.runtime.gloo import run_ranks
from tests.planner.runtime.stages import Model, Stage, batch, candidate, distance, unsharded_gradients

SCHEDULES = {
    "gpipe": 1, "1f1b": 1, "interleaved-1f1b": 2, "looped-bfs": 2, "zb-h1": 1, "zb-v": 2, "dualpipe-v": 2,
}  # fmt: skip


def _step(
    schedule: str, zero_stage: int, *, dp: tuple[int, int], tied: bool = False, recompute: str = "none"
) -> tuple[float, float]:
    """Largest distances of (loss, gradient) from those of the whole model, on this rank's stages."""
    replicate, shard = dp
    chunks, pp, num_microbatches = SCHEDULES[schedule], 2, 4
    c = candidate(
        pp=pp, dp_replicate=replicate, dp_shard=shard, zero_stage=zero_stage, num_microbatches=num_microbatches
    )
    meshes = make_meshes(c, rank=torch.distributed.get_rank(), device_type="cpu")
    order = make(schedule, pp, num_microbatches, chunks)
    ranks = order.placements[0]
    torch.manual_seed(0)
    whole = Model(tied=tied)
    tokens, labels = batch(2 * num_microbatches * c.data_parallel)
    loss, expected = unsharded_gradients(whole, (tokens, labels))
    mine = [s for s, rank in enumerate(ranks) if rank == meshes.coordinates["pp"]]
    copies: dict[str, list[nn.Parameter]] = {"embed.weight": []}
    stages = []
    for index in mine:
        torch.manual_seed(0)
        model = Model(tied=tied)
        stages.append(Stage(model, index, pp * chunks))
        for block in stages[-1].units[stages[-1].first :][: len(stages[-1].blocks)]:
            block.forward = recomputed(block.forward, recompute)
        shard_units(stages[-1], stages[-1].groups, meshes, zero_stage=zero_stage, precision=PRECISIONS["fp32"])
        if stages[-1].first or stages[-1].last:
            copies["embed.weight"].append((model.embed if stages[-1].first else model.head).weight)
    runners = [
        StageRunner(
            stage, index, pp * chunks, meshes=meshes, device=torch.device("cpu"),
            inputs=() if stage.first else stage.crossing(2),
            outputs=(torch.empty((), device="meta", requires_grad=True),) if stage.last else stage.crossing(2),
            zero_stage=zero_stage, recomputes=recompute != "none",
        )
        for index, stage in zip(mine, stages, strict=True)
    ]  # fmt: skip
    pipeline = Pipeline(runners, order, seed=1 / num_microbatches)
    at = meshes.data_coordinate
    parts = [t.chunk(c.data_parallel)[at].chunk(num_microbatches) for t in (tokens, labels)]
    losses = pipeline.step([{"b0": a, "b1": b} for a, b in zip(*parts, strict=True)])
    if tied:
        add_tied_gradients(make_ties({"embed.weight": [0, pp * chunks - 1]}, copies, ranks, meshes, sharded=True))
    worst = 0.0
    for stage in stages:
        for name, param in stage.named_parameters():
            _, unit, rest = name.split(".", 2)
            fqn = _fqn(stage, int(unit), rest)
            grad = param.grad.full_tensor() if isinstance(param.grad, DTensor) else param.grad
            fqn = "embed.weight" if tied and fqn == "head.weight" else fqn
            worst = max(worst, distance(grad, expected[fqn]))
    total = torch.stack(losses).sum() / c.data_parallel if losses else torch.zeros(())
    torch.distributed.all_reduce(total)
    return abs(total.item() - loss), worst


def _fqn(stage: Stage, unit: int, rest: str) -> str:
    at = unit - stage.first
    return f"blocks.{stage.blocks[at]}.{rest}" if 0 <= at < len(stage.blocks) else rest


def _all_schedules() -> dict[str, tuple[float, float]]:
    found = {}
    for schedule in SCHEDULES:
        splits = schedule in ("zb-h1", "zb-v", "dualpipe-v")
        for zero_stage in (1, 2) if splits else (1, 2, 3):
            found[f"{schedule} {zero_stage}"] = _step(schedule, zero_stage, dp=(1, 2))
        found[f"{schedule} replicated"] = _step(schedule, 0, dp=(2, 1))
        found[f"{schedule} recomputed"] = _step(schedule, 2, dp=(1, 2), recompute="selective")
        found[f"{schedule} tied"] = _step(schedule, 2, dp=(1, 2), tied=True)
    return found


def test_every_schedule_computes_what_the_whole_model_does() -> None:
    for found in run_ranks(4, _all_schedules):
        wrong = {case: values for case, values in found.items() if values[0] > 1e-5 or not values[1] < 1e-4}
        assert not wrong
        assert len(found) == 39
