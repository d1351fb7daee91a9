"""The command: what it reads, prints and ends with. What a dry run finds is tested where it is done."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner import cli, plan_file
from planner.dry_run_result import DryRun
from planner.runtime import dry_run as runtime
from tests import factories
from tests.planner.report.test_dry_run import FOUND, RANK


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "plan.json"
    plan_file.write(factories.plan(), path)
    return str(path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str, finds: DryRun = FOUND) -> SimpleNamespace:
        asked: dict[str, Any] = {}

        def dry_run(plan: Any, model: Any, **settings: Any) -> DryRun:
            asked.update(settings, model=model)
            return replace(finds, max_difference=settings["max_difference"])

        monkeypatch.setattr(runtime, "dry_run", dry_run)
        monkeypatch.setattr(sys, "argv", ["meshwright", "dry-run", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code, out=out, err=err, asked=asked)

    return run


def test_tables_and_json(run: Any, plan: str) -> None:
    done = run(plan)
    assert done.code == 0 and "as predicted" in done.out
    assert (done.asked["rank"], done.asked["max_difference"], done.asked["model"]) == (None, 0.05, None)
    assert json.loads(run(plan, "--json").out)["ok"] is True


def test_options(run: Any, plan: str) -> None:
    done = run(plan, "--rank", "3", "--max-diff", "0.1", "--model", "llama3-8b")
    assert (done.asked["rank"], done.asked["max_difference"], done.asked["model"]) == (3, 0.1, "llama3-8b")


def test_too_far_off_is_exit_6(run: Any, plan: str) -> None:
    done = run(plan, finds=replace(FOUND, ranks=(replace(RANK, peak_bytes=120),)))
    assert done.code == 6 and "rank 0 differs from the prediction by 20.0%" in done.err
    assert run(plan, "--max-diff", "25%", finds=replace(FOUND, ranks=(replace(RANK, peak_bytes=120),))).code == 0


@pytest.mark.parametrize("arguments", [("--rank", "first"), ("--max-diff", "much"), ("--max-diff", "-1")])
def test_what_is_no_rank_or_share(run: Any, plan: str, arguments: tuple[str, ...]) -> None:
    assert run(plan, *arguments).code == 2


def test_a_file_that_is_no_plan(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    assert run(str(path)).code == 4
