from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hardware_profiles.load import load_cluster
from planner import cli, plan_file
from planner.errors import NoPlanError, UsageError
from planner.fixed_plan import fixed_plan
from planner.job import Constraints
from planner.plan import Candidate, Plan, PlanInputs, known
from planner.planning import best_plan, plan_inputs
from planner.replan import Left, _likewise, plan_left, survivors
from planner.solvers.search import predict, search
from planner.solvers.setting import Setting
from tests.planner.solvers.small import TOY, setting

FACTORY = """
import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def build():
    return Net(), lambda batch, seq_len: (torch.randn(batch, 32),)
"""


def old_plan(family: str = "gqa", shape: str = "4x4", **constraints: Any) -> tuple[Setting, Plan]:
    case = setting(family, shape=shape, global_batch=48)
    pins = Constraints(**constraints)
    return case, best_plan(case, search(case, pins, top=1), plan_inputs(case, pins, "2.13.0"))


@pytest.mark.parametrize(
    ("nodes", "devices", "left"),
    [(1, 0, (3, 4)), (0, 3, (3, 4)), (0, 4, (3, 4)), (1, 5, (1, 4)), (3, 1, (1, 3)), (0, 15, (1, 1))],
)
def test_what_is_left(nodes: int, devices: int, left: tuple[int, int]) -> None:
    found = survivors(load_cluster(f"{TOY}:4x4"), lost_nodes=nodes, lost_devices=devices)
    assert (found.nodes, found.per_node) == left
    assert sum(found.alive) == 16 - 4 * nodes - devices
    assert all(found.alive[: left[0] * left[1]])


@pytest.mark.parametrize(
    ("nodes", "devices", "message"),
    [(0, 0, "nothing is lost"), (4, 0, "are 16 devices: .* has 16"), (3, 9, "3 nodes of 4 and 9 devices are 21")],
)
def test_more_than_there_is_cannot_be_lost(nodes: int, devices: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        survivors(load_cluster(f"{TOY}:4x4"), lost_nodes=nodes, lost_devices=devices)


def test_the_best_for_what_is_left_trains_the_same_job() -> None:
    case, plan = old_plan()
    left = Left(nodes=3, per_node=4, alive=(True,) * 12 + (False,) * 4)
    found, chosen = plan_left(case.graph, plan, left, TOY, "2.13.0")
    assert found.inputs.job == plan.inputs.job
    assert found.candidate.num_devices == chosen.cluster.num_devices <= 12
    c = found.candidate
    assert c.data_parallel * c.microbatch_size * c.num_microbatches == plan.inputs.job.global_batch
    for nodes in (2, 3):
        other = replace(chosen, cluster=load_cluster(f"{TOY}:{nodes}x4"))
        best = search(other, Constraints(), top=1).best[0]
        assert known(found.predicted).step_s <= predict(best).step_s


def test_pins_of_degrees_are_dropped_and_others_kept() -> None:
    case, plan = old_plan(dp_shard=16, recompute="full")
    left = Left(nodes=3, per_node=4, alive=(True,) * 12 + (False,) * 4)
    found, _ = plan_left(case.graph, plan, left, TOY, "2.13.0")
    assert found.candidate.recompute == "full"
    assert found.inputs.constraints == Constraints(recompute="full")


def test_a_plan_that_no_search_finds_goes_on_with_fewer_replicas() -> None:
    case = setting("mixtral", shape="4x4", global_batch=48)
    c = Candidate(
        pp=1, dp_replicate=4, dp_shard=2, cp=2, context="ring", tp=1, ep=4, sequence_parallel=False, zero_stage=3,
        microbatch_size=1, num_microbatches=6, recompute="none",
    )  # fmt: skip
    inputs = PlanInputs(model="m", hardware=f"{TOY}:4x4", num_devices=16, job=case.job)
    plan = fixed_plan(case, c, inputs)
    left = Left(nodes=3, per_node=4, alive=(True,) * 12 + (False,) * 4)
    found, chosen = plan_left(case.graph, plan, left, TOY, "2.13.0")
    three = replace(chosen, cluster=load_cluster(f"{TOY}:3x4"))
    searched = search(three, Constraints(), top=1).best
    (likewise,) = _likewise(c, 12, 48)
    assert (likewise.dp_replicate, likewise.dp_shard, likewise.num_microbatches) == (3, 2, 8)
    own = fixed_plan(three, likewise, inputs)
    assert known(found.predicted).step_s <= min(known(own.predicted).step_s, predict(searched[0]).step_s)


def test_nothing_fits() -> None:
    case, plan = old_plan()
    small = replace(plan, inputs=replace(plan.inputs, constraints=Constraints(memory_fraction=1e-6)))
    left = Left(nodes=1, per_node=4, alive=(True,) * 4 + (False,) * 12)
    with pytest.raises(NoPlanError, match=r"no plan fits .* on 1 nodes of 4 devices with a global batch of 48"):
        plan_left(case.graph, small, left, TOY, "2.13.0")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["meshwright", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code, out=out, err=err)

    return run


@pytest.fixture
def saved(tmp_path: Path, run: Any) -> Path:
    (tmp_path / "net.py").write_text(FACTORY)
    path = tmp_path / "plan.json"
    done = run("plan", f"{tmp_path}/net.py:build", "--hardware", f"{TOY}:2x4", "--global-batch", "24", "--seq-len", "1",
               "-o", str(path))  # fmt: skip
    assert done.code in (0, None), done.err
    content = json.loads(path.read_text())
    assert content["inputs"]["job"]["global_batch"] == 24
    return path


def test_the_command_line(saved: Path, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "b.json"
    base = ["replan", str(saved), "--hardware", TOY, "--model", f"{tmp_path}/net.py:build"]
    done = run(*base, "--lost", "1", "node", "--out", str(out))
    assert done.code in (0, None), done.err
    assert "4 of 8 devices are left; global batch 24 as before" in done.out
    assert "lost: from the checkpoint" in done.out
    plan = plan_file.read(out)
    assert plan.candidate.num_devices <= 4
    again = run(*base, "--lost", "1 node", "--lost", "2", "devices", "--json")
    moved = json.loads(again.out)
    assert moved["left"] == {"nodes": 1, "devices_per_node": 2}
    for device in moved["moving"]["devices"]:
        assert device["held"] == device["kept"] + device["fetched"] + device["lost"]
    held = np.array([device["held"] for device in moved["moving"]["devices"]])
    assert moved["moving"]["reload_s"] == pytest.approx(held.sum() / 10e9)
    assert moved["plan"]["inputs"]["job"] == json.loads(saved.read_text())["inputs"]["job"]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (["3", "cows"], "--lost 3 cows: say how many of what, --lost 1 node or --lost 3 devices"),
        (["3"], "--lost 3: say how many of what"),
        (["2", "nodes"], "some must be left"),
        (["0", "nodes"], "nothing is lost"),
    ],
)
def test_bad_losses(tmp_path: Path, run: Any, lost: list[str], message: str) -> None:
    plan_file.write(old_plan(shape="2x4")[1], tmp_path / "plan.json")
    done = run("replan", str(tmp_path / "plan.json"), "--hardware", TOY, "--lost", *lost)
    assert done.code == 2
    assert message in done.err


def test_nothing_is_written_over(tmp_path: Path, run: Any) -> None:
    path = tmp_path / "plan.json"
    path.write_text("precious")
    done = run("replan", str(path), "--hardware", TOY, "--lost", "1", "node", "--out", str(path))
    assert done.code == 4
    assert path.read_text() == "precious"
