"""``meshwright run`` on one process and on two: the same training, with traces and figures beside it."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from hardware_profiles.load import load_cluster
from planner import cli, plan_file
from planner.capture.sources import capture_model
from planner.fixed_plan import fixed_plan
from planner.job import Constraints, Job
from planner.plan import Plan
from planner.planning import calibrated, plan_inputs
from planner.solvers.plan_price import predict_plan
from planner.solvers.setting import Setting
from tests.planner.runtime.gloo import run_ranks
from tests.planner.runtime.stages import candidate

FACTORY = '''
from dataclasses import replace
from planner import models

def build():
    config = models.preset("llama3-8b").config
    return models.build_from_config(replace(
        config, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, hidden_dim=48, vocab_size=40
    ))
'''  # fmt: skip
LENGTH, VOCABULARY = 16, 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "small.py"
    path.write_text(FACTORY)
    return f"{path}:build"


def save_plan(model: str, path: Path, **changes: Any) -> Plan:
    """A plan of 4 samples for gloo processes."""
    c = candidate(**changes)
    graph, seq_len, version = capture_model(model, seq_len=LENGTH, compute_dtype="float32")
    cluster = load_cluster("cpu-gloo", c.num_devices)
    setting = Setting(
        graph, cluster, Job(global_batch=4, seq_len=seq_len, precision="fp32"), calibrated(graph, cluster)
    )
    plan = fixed_plan(setting, c, plan_inputs(setting, Constraints(), version))
    plan_file.write(plan, path)
    return plan


def command(*arguments: str) -> SimpleNamespace:
    """The command in this process: exit code, stdout, stderr."""
    sys.argv = ["meshwright", *arguments]
    dist.destroy_process_group = lambda: None  # the group is the launcher's
    code = 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def commands(*lines: tuple[str, ...]) -> list[SimpleNamespace]:
    return [command(*line) for line in lines]


def test_two_processes_train_as_one_does(model: str, tmp_path: Path) -> None:
    save_plan(model, tmp_path / "one.json", microbatch_size=4, num_microbatches=1)
    plan = save_plan(model, tmp_path / "two.json", tp=2, pp=1, microbatch_size=2, num_microbatches=2)
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.random.default_rng(0).integers(0, VOCABULARY, size=200))
    more = ("--steps", "3", "--model", model, "--json")
    lines = [more, (*more, "--data", str(tokens))]
    (alone,) = run_ranks(1, commands, *(("run", str(tmp_path / "one.json"), *line) for line in lines))
    traced = ("run", str(tmp_path / "two.json"), *more[:-1], "--trace", str(tmp_path / "traces"))
    first, second = run_ranks(
        2, commands, *(("run", str(tmp_path / "two.json"), *line) for line in lines), traced, traced
    )
    assert [done.out for done in second] == [""] * 4
    for one, two in zip(alone, first[:2], strict=True):
        assert (one.code, two.code) == (0, 0), one.err + two.err
        steps = [[(s["loss"], s["grad_norm"]) for s in json.loads(done.out)["steps"]] for done in (one, two)]
        np.testing.assert_allclose(steps[1], steps[0], rtol=1e-4)
    content = json.loads(first[0].out)
    assert content["world_size"] == 2 and content["device"] == "cpu"
    assert content["predicted"]["step_s"] == plan.predicted.step_s
    losses = [step["loss"] for step in content["steps"]]
    assert losses == sorted(losses, reverse=True)
    # Traces lie side by side, and are not written over.
    assert first[2].code == 0 and "predicted" in first[2].out
    assert [done[3].code for done in (first, second)] == [4, 4]
    assert "predicted.json, measured-rank0.json, measured-rank1.json already" in first[3].err and not second[3].err
    names = {path.name for path in (tmp_path / "traces").iterdir()}
    assert names == {"predicted.json", "measured-rank0.json", "measured-rank1.json"}
    measured = json.loads((tmp_path / "traces" / "measured-rank1.json").read_text())["traceEvents"]
    assert sum("scaled_dot_product" in event.get("name", "") for event in measured) >= 4
    predicted = json.loads((tmp_path / "traces" / "predicted.json").read_text())["traceEvents"]
    end_us = max(event["ts"] + event["dur"] for event in predicted if event["ph"] == "X")
    assert end_us == pytest.approx(1e6 * plan.predicted.step_s)


def test_a_run_goes_on_under_another_plan(model: str, tmp_path: Path) -> None:
    """Two steps on one process and two more on two, against four on one."""
    save_plan(model, tmp_path / "one.json", microbatch_size=4, num_microbatches=1)
    save_plan(model, tmp_path / "two.json", dp_shard=2, zero_stage=3, microbatch_size=1, num_microbatches=2)
    one, two = (("run", str(tmp_path / name), "--model", model, "--json") for name in ("one.json", "two.json"))
    saved = str(tmp_path / "saved")
    first = (*one, "--steps", "2", "--checkpoint", saved)
    ((whole, half, refused),) = run_ranks(1, commands, (*one, "--steps", "4"), first, first)
    assert (half.code, refused.code) == (0, 4) and "already" in refused.err
    rest, _ = run_ranks(2, command, *two, "--steps", "2", "--resume", saved, "--seed", "0")
    assert rest.code == 0, rest.err
    losses = [[step["loss"] for step in json.loads(done.out)["steps"]] for done in (whole, half, rest)]
    np.testing.assert_allclose(losses[1] + losses[2], losses[0], rtol=1e-4)


def test_what_cannot_run_is_said_before_anything_starts(model: str, tmp_path: Path) -> None:
    save_plan(model, tmp_path / "two.json", tp=2, microbatch_size=4)
    save_plan(model, tmp_path / "one.json", microbatch_size=4)
    one = str(tmp_path / "one.json")
    (tmp_path / "file").touch()
    np.save(tmp_path / "short.npy", np.zeros(LENGTH, dtype=np.int64))
    for code, said, line in (
        (2, "the plan is for 2 devices", (str(tmp_path / "two.json"), "--model", model)),
        (2, "--model path/to/file.py:factory", (one,)),
        (4, "unknown hardware", (one, "--model", model, "--hardware", "none-such")),
        (2, "it is a file", (one, "--model", model, "--trace", str(tmp_path / "file"))),
        (4, "16 tokens; a sample has 16 and one more", (one, "--model", model, "--data", str(tmp_path / "short.npy"))),
    ):
        done = command("run", *line)
        assert done.code == code and said in done.err and not done.out, done.err
        assert "Traceback" not in done.err
    assert not dist.is_initialized()


def test_a_hand_written_plan_is_priced_with_the_hardware_named(model: str, tmp_path: Path) -> None:
    plan = replace(save_plan(model, tmp_path / "p.json", microbatch_size=4), predicted=None)
    plan_file.write(plan, tmp_path / "by_hand.json")
    line = (
        "run",
        str(tmp_path / "by_hand.json"),
        "--model",
        model,
        "--steps",
        "1",
        "--json",
        "--hardware",
        "h100-sxm:1x1",
    )
    (done,) = run_ranks(1, command, *line)
    assert done.code == 0, done.err
    graph, *_ = capture_model(model, seq_len=LENGTH, compute_dtype="float32")
    cluster = load_cluster("h100-sxm:1x1")
    setting = Setting(graph, cluster, plan.inputs.job, calibrated(graph, cluster))
    assert json.loads(done.out)["predicted"]["step_s"] == pytest.approx(predict_plan(setting, plan).step_s)
    assert torch.get_default_dtype() == torch.float32
