from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner import cli, plan_file
from planner.errors import MeshwrightError, ModelSourceError, NoPlanError, TraceError, UnknownNameError, UsageError
from planner.job import Pin
from planner.plan import PlanResult
from planner.report import layer_detail, table
from tests import factories


class Planning:
    """Stands in for ``planner.planning``: notes what it is asked and answers with a hand-made result."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.error: Exception | None = None

    def make_plan(self, model: str, **settings: Any) -> PlanResult:
        self.asked = {"model": model, **settings}
        settings["progress"]("searching [1/2]")
        if self.error is not None:
            raise self.error
        return factories.result()


@pytest.fixture
def planning(monkeypatch: pytest.MonkeyPatch) -> Planning:
    stand_in = Planning()
    monkeypatch.setitem(sys.modules, "planner.planning", stand_in)
    monkeypatch.delenv("MESHWRIGHT_DEBUG", raising=False)
    return stand_in


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["meshwright", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code, out=out, err=err)

    return run


def test_layer_detail_follows_the_table(planning: Planning, run: Any) -> None:
    done = run("plan", "--layer-detail")
    assert done.out == table.render(factories.result()) + "\n" + layer_detail.render(factories.plan())


def test_pins_are_read_from_their_file(planning: Planning, run: Any, tmp_path: Path) -> None:
    path = tmp_path / "pins.toml"
    path.write_text('[[pin]]\nfqn = "layers.*.wo"\nlayout = "tp:S(1)"\n')
    assert run("plan", "--pins", str(path)).code == 0
    assert planning.asked["constraints"].pins == (Pin(fqn="layers.*.wo", layout="tp:S(1)"),)
    assert run("plan", "--pins", str(tmp_path / "none.toml")).code == 2


def test_plan_prints_the_table_on_stdout_and_warnings_on_stderr(planning: Planning, run: Any) -> None:
    done = run("plan")
    assert done.code == 0
    assert done.out == table.render(factories.result())
    assert done.err == "meshwright: warning: lm_head is tied to the embedding\n"
    assert planning.asked["model"] == "llama3-70b"
    assert planning.asked["hardware"] == "h100-sxm:8x8"
    assert planning.asked["global_batch"] is None


def test_plan_passes_on_every_option(planning: Planning, run: Any) -> None:
    job = ["--devices", "16", "--global-batch", "32", "--seq-len", "128", "--precision", "fp32", "--optimizer", "sgd"]
    pins = ["--max-tp", "8", "--max-pp", "7", "--tp", "6", "--pp", "5", "--dp-replicate", "4", "--dp-shard", "3"]
    more = ["--microbatch-size", "2", "--recompute", "full", "--top", "9"]
    assert run("plan", "model.py:build", *job, *pins, *more).code == 0
    asked = planning.asked
    assert (asked["model"], asked["hardware"], asked["devices"]) == ("model.py:build", "h100-sxm", 16)
    assert (asked["global_batch"], asked["seq_len"], asked["top"]) == (32, 128, 9)
    assert (asked["precision"], asked["optimizer"]) == ("fp32", "sgd")
    limits = asked["constraints"]
    assert (limits.max_tp, limits.max_pp, limits.tp, limits.pp) == (8, 7, 6, 5)
    assert (limits.dp_replicate, limits.dp_shard, limits.microbatch_size, limits.recompute) == (4, 3, 2, "full")


def test_json_is_one_object_on_stdout(planning: Planning, run: Any) -> None:
    done = run("plan", "--json")
    content = json.loads(done.out)
    alternatives, seconds = content.pop("alternatives"), content.pop("seconds")
    assert content == json.loads(plan_file.to_json(factories.plan()))
    assert seconds == {"capture": 1.5, "search": 0.25, "total": 1.75}
    assert [alternative["dp_replicate"] for alternative in alternatives] == [4, 2]
    assert set(alternatives[0]) == {
        *("pp", "dp_replicate", "dp_shard", "tp", "sequence_parallel", "zero_stage"),
        *("microbatch_size", "num_microbatches", "recompute"),
        *("step_s", "tokens_per_s", "mfu", "peak_memory_bytes"),
    }


def test_output_is_the_plan_file(planning: Planning, run: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    done = run("plan", "-o", str(path))
    assert path.read_text() == plan_file.to_json(factories.plan())
    assert f"saved     {path}"[:60] in done.out


def test_an_existing_output_is_refused_before_the_work(planning: Planning, run: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("precious")
    done = run("plan", "--output", str(path))
    assert (done.code, done.out) == (4, "")
    assert "plan.json exists already; nothing was written" in done.err
    assert planning.asked == {}
    assert path.read_text() == "precious"
    assert run("plan", "--output", str(path), "--force").code == 0
    assert path.read_text() == plan_file.to_json(factories.plan())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("tp (3) must divide 64 heads"), 2),
        (NoPlanError("no plan fits"), 3),
        (UnknownNameError("model", "lama3-70b", ["llama3-70b"]), 4),
        (TraceError("layers.0: cannot be traced"), 4),
    ],
)
def test_a_users_mistake_is_a_message_and_an_exit_code(
    planning: Planning, run: Any, error: MeshwrightError, code: int
) -> None:
    planning.error = error
    done = run("plan")
    assert (done.code, done.out, done.err) == (code, "", f"meshwright: error: {error}\n")


def test_a_failing_factory_shows_its_own_error_first(planning: Planning, run: Any) -> None:
    planning.error = ModelSourceError("model.py:build raised")
    planning.error.__cause__ = ZeroDivisionError("division by zero")
    done = run("plan")
    assert done.code == 4
    assert done.err == "ZeroDivisionError: division by zero\nmeshwright: error: model.py:build raised\n"


def test_our_bug_is_said_to_be_ours(planning: Planning, run: Any) -> None:
    planning.error = KeyError("tp")
    done = run("plan")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("meshwright: internal error: KeyError: 'tp'\n")
    assert "MESHWRIGHT_DEBUG=1" in done.err
    assert "Traceback" not in done.err


def test_debugging_shows_the_traceback(planning: Planning, monkeypatch: pytest.MonkeyPatch) -> None:
    planning.error = KeyError("tp")
    monkeypatch.setenv("MESHWRIGHT_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["meshwright", "plan"])
    with pytest.raises(KeyError):
        cli.main()


@pytest.mark.parametrize(
    "arguments",
    [["plan", "--tp", "0"], ["plan", "--recompute", "some"], ["plan", "--tpp", "2"], ["fly"], ["hardware", "x"]],
)
def test_wrong_usage_is_exit_code_2(run: Any, arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage:" in done.err


def test_schema_and_version(run: Any) -> None:
    assert json.loads(run("schema", "plan").out) == plan_file.json_schema()
    assert run("--version").out.startswith("meshwright 0.")


def test_models_are_listed_with_their_parameters(run: Any) -> None:
    done = run("models")
    assert done.code == 0
    line = next(line for line in done.out.splitlines() if line.startswith("llama3-70b "))
    assert line.split()[1:4] == ["70.6", "B", "8,192"]


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = [sys.executable, "-c", "from planner.cli import main; main()", "schema", "plan"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 0
