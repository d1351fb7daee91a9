from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner import cli

FACTORY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return torch.fft.rfft(x).abs().mean()


def build():
    return Net(), lambda batch, seq_len: (torch.randn(batch, seq_len, 16),)
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["meshwright", "support", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code, out=out, err=err)

    return run


def test_a_built_in_has_rules_for_everything(run: Any) -> None:
    done = run("gpt2")
    assert (done.code, done.out.splitlines()[0].partition(": ")[2][:6]) == (0, "100.0%")
    assert "without a rule" not in done.out


def test_what_has_no_rule_is_named_with_its_module(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(FACTORY)
    content = json.loads(run(f"{path}:build", "--seq-len", "8", "--precision", "fp32", "--json").out)
    assert "_fft_r2c" in {entry["operation"] for entry in content["unruled"]}
    assert content["ruled_share"] < 1
    assert not next(op for op in content["operations"] if op["name"] == "_fft_r2c")["ruled"]


@pytest.mark.parametrize(("arguments", "text"), [(("gpt5",), "unknown model"), (("gpt2", "--precision", "fp7"), "fp7")])
def test_bad_input_is_refused(run: Any, arguments: tuple[str, ...], text: str) -> None:
    done = run(*arguments)
    assert done.code == 4 and text in done.err
