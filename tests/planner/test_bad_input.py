"""What a user gets for a mistake, through the command line with nothing replaced."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner import cli, plan_file
from tests.planner.layouts.small import capture_once

TOY = "tests/hardware_profiles/toy.toml"

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(32))
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
    def forward(self, x):
        x = x * self.scale
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return x.square().mean()

def build():
    return Net(), (torch.empty(2, 32),)

def broken():
    return {}["weights"]

def bare():
    return Net()
"""


@pytest.fixture(autouse=True)
def _trace_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.capture.sources.capture_model", capture_once)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs ``meshwright`` in this process: exit code, stdout, stderr (words joined by single spaces)."""
    monkeypatch.delenv("MESHWRIGHT_DEBUG", raising=False)

    def run(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["meshwright", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code, out=out, err=err, said=" ".join(err.split()))

    return run


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A small model of one's own, ``file.py:build``."""
    path = tmp_path / "net.py"
    path.write_text(MODEL)
    return f"{path}:build"


def refused(done: SimpleNamespace, code: int, *words: str) -> None:
    """The exit code, nothing on stdout, one message that holds the words, and no traceback."""
    assert (done.code, done.out) == (code, "")
    for word in words:
        assert word in done.said
    assert "internal error" not in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lama3-8b",), ("lama3-8b", "Did you mean 'llama3-8b'?")),
        (("llama3-8b", "--hardware", "h100-smx:1x8"), ("h100-smx", "Did you mean 'h100-sxm'?")),
        (("llama3-8b", "--precision", "bf61"), ("bf61", "Did you mean 'bf16'?", "fp32")),
        (("llama3-8b", "--optimizer", "admaw"), ("admaw", "Did you mean 'adamw'?", "sgd-momentum")),
        (("nowhere/net.py:build",), ("nowhere/net.py", "no such file")),
        (("llama3-8b", "--hardware", "nowhere.toml:1x8"), ("nowhere.toml", "no such profile file")),
        (("llama3-8b", "--hardware", "h100-sxm:8"), ("h100-sxm:8", "NODESxDEVICES_PER_NODE")),
        (("llama3-8b", "--hardware", "h100-sxm", "--devices", "12"), ("12", "one node (8)", "multiple")),
        (("llama3-8b", "--hardware", "h100-sxm:2x8", "--devices", "8"), ("16", "8")),
    ],
    ids=["model", "hardware", "precision", "optimizer", "file", "profile", "shape", "devices", "both"],
)
def test_unknown_names_are_exit_4_with_the_nearest(
    run: Any, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(run("plan", *arguments), 4, *words)


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        (("--dp-shard", "8", "--global-batch", "100"), ("global batch (100)", "(8 * 1 = 8)")),
        (("--microbatch-size", "3", "--global-batch", "16"), ("global batch (16)", "3")),
        (("--pp", "3"), ("pp (3) = 3 must divide the number of devices (8)",)),
        (("--tp", "4", "--pp", "4"), ("pp (4) * tp (4) = 16 must divide the number of devices (8)",)),
        (
            ("--tp", "1", "--pp", "2", "--dp-shard", "2", "--dp-replicate", "1"),
            ("= 4 must be the number of devices (8)",),
        ),
        (("--pp", "8"), ("pp (8) exceeds the 5 blocks of net.py:build",)),
        (("--tp", "2"), ("tp 2", "no operation of the model can be sharded")),
        (("--tp", "4", "--max-tp", "2"), ("tp (4) exceeds max_tp (2)",)),
        (("--global-batch", "3", "--max-pp", "1", "--max-tp", "1"), ("no mesh of 8 devices", "global batch of 3")),
        (("--pp", "4", "--global-batch", "4"), ("no mesh of 8 devices", "fewer microbatches than stages")),
    ],
    ids=["batch", "microbatch", "pp", "product", "four", "blocks", "tp", "limit", "devices", "microbatches"],
)
def test_settings_that_break_a_rule_are_exit_2_with_its_numbers(
    run: Any, model: str, pins: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(run("plan", model, "--hardware", f"{TOY}:2x4", *pins), 2, *words)


def test_tensor_parallelism_that_does_not_divide_the_key_heads(run: Any) -> None:
    done = run("plan", "llama3-8b", "--hardware", "h100-sxm:2x8", "--tp", "16")
    refused(done, 2, "tp 16 does not divide 8 at layers.0.attention.wk.weight of llama3-8b")


@pytest.mark.parametrize("hardware", ["h100-sxm:1x8", "a100-40gb:1x8"])
def test_a_model_that_does_not_fit_is_exit_3_and_the_changes_do_fit(run: Any, hardware: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    job = ("llama3-70b", "--global-batch", "64", "--max-pp", "2", "-o", str(path))
    done = run("plan", *job, "--hardware", hardware)
    refused(done, 3, f"no plan fits llama3-70b on {hardware}", "GiB on its fullest device; the limit is", "memory")
    needs, limit = (float(n) for n in re.findall(r"needs ([\d.]+) GiB.* limit is ([\d.]+) GiB", done.said)[0])
    assert needs > limit
    assert not path.exists()
    changes = re.findall(r"\d\. (On (\d+) devices \((\S+)\)|Without ([\w=, ]+)) it fits: (pp \d+)", done.said)
    assert changes
    for _, devices, name, unpinned, first in changes:
        pins = [] if unpinned else ["--max-pp", "2"]
        again = run("plan", "llama3-70b", "--global-batch", "64", "--hardware", name or hardware, *pins, "--json")
        assert again.code == 0
        assert f'"size": {first.removeprefix("pp ")}' in again.out
        assert not devices or name.startswith(hardware.partition(":")[0])


@pytest.mark.parametrize(
    ("line", "other", "words"),
    [
        ("memory_gib = 16.0", "memory_gib = -16.0", ("memory_gib", "-16.0")),
        ("memory_gib = 16.0", "memory_gib = 'much'", ("memory_gib", "much")),
        ("memory_gib = 16.0", "memory_mb = 16.0", ("memory_mb",)),
        ("memory_gib = 16.0", "memory_gib = = 16", ("TOML",)),
        ("num_devices = 4", "num_devices = 0", ("num_devices", "0")),
    ],
    ids=["negative", "text", "unknown field", "no TOML", "no devices"],
)
def test_a_corrupt_profile_names_file_field_value(
    run: Any, model: str, tmp_path: Path, line: str, other: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(Path(TOY).read_text().replace(line, other))
    refused(run("plan", model, "--hardware", f"{path}:1x4"), 4, "mine.toml", *words)


def test_a_factory_that_raises_shows_its_own_error_first(run: Any, model: str) -> None:
    done = run("plan", model.replace("build", "broken"), "--hardware", f"{TOY}:1x4")
    assert (done.code, done.out) == (4, "")
    assert done.err.index('{}["weights"]') < done.err.index("KeyError: 'weights'") < done.err.index("meshwright: error")
    assert "net.py:broken() raised KeyError" in done.said


def test_a_factory_without_inputs_hears_what_is_asked_of_it(run: Any, model: str) -> None:
    refused(run("plan", model.replace("build", "bare"), "--hardware", f"{TOY}:1x4"), 4, "Net", "(module, inputs)")
    refused(run("plan", model.replace("build", "biuld")), 4, "biuld", "Did you mean 'build'?")


def test_an_existing_file_is_left_alone_without_force(run: Any, model: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("precious")
    arguments = ("plan", model, "--hardware", f"{TOY}:1x4", "-o", str(path))
    refused(run(*arguments), 4, "plan.json exists already", "--force")
    assert path.read_text() == "precious"
    assert run(*arguments, "--force").code == 0
    assert plan_file.read(path).inputs.model == "net.py:build"


@pytest.mark.parametrize("wrong", [("--tp", "2"), ("--precision", "bf61"), ("--pp", "3")])
def test_nothing_is_written_or_replaced_when_planning_fails(
    run: Any, model: str, tmp_path: Path, wrong: tuple[str, ...]
) -> None:
    path = tmp_path / "out" / "plan.json"
    path.parent.mkdir()
    arguments = ("plan", model, "--hardware", f"{TOY}:1x4", "-o", str(path), *wrong)
    assert run(*arguments).code in (2, 4)
    assert list(path.parent.iterdir()) == []
    path.write_text("precious")
    assert run(*arguments, "--force").code in (2, 4)
    assert [p.read_text() for p in path.parent.iterdir()] == ["precious"]


def test_a_plan_that_cannot_be_written_says_where(run: Any, model: str, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    shutil.rmtree(folder)
    done = run("plan", model, "--hardware", f"{TOY}:1x4", "-o", str(folder / "plan.json"))
    assert done.code == 4
    assert "gone" in done.said
