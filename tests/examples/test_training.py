"""Examples that train, run as they stand on one process and on two: the same model on the same data."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.planner.runtime.gloo import run_ranks

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("train_builtin", "train_hf", "train_own_module")


def _losses(names: tuple[str, ...]) -> dict[str, list[float]]:
    """What the examples print, one after another in one process group."""
    dist.destroy_process_group = lambda: None  # the group is the launcher's
    found = {}
    for name in names:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()
        found[name] = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out.getvalue())]
    return found


def test_examples_train_alike_on_one_process_and_on_two() -> None:
    pytest.importorskip("transformers")
    (alone,) = run_ranks(1, _losses, NAMES, timeout_s=400)
    first, second = run_ranks(2, _losses, NAMES, timeout_s=400)
    for name in NAMES:
        assert len(alone[name]) == 5 and alone[name][-1] < alone[name][0]
        assert first[name] == pytest.approx(alone[name], abs=2e-4)
        assert second[name] == []


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_short(name: str) -> None:
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 60
