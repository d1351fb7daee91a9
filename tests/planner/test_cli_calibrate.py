from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner import cli
from planner.validation.case_files import load_cases
from planner.validation.pricing import price
from tests.planner.validation.rows import ROW, write

SLOWER = 1.3

RUNS = [
    ROW
    | {
        "id": f"run {i}", "group": f"run {i}", "hardware": "H100-80GB-SXM", "framework": "torchtitan", "gpus": 8,
        "precision": "bf16", "layers": 8, "hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8, "vocab": 32000,
        "gated_mlp": True, "seq_len": seq_len, "global_batch": 16, "micro_batch": 1, "tp": 2, "zero_stage": 3,
        "recompute": "none", "step_time_s": 1.0,
    }
    for i, seq_len in enumerate((4096, 8192, 16384))
]  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Runs that took `SLOWER` times what is predicted."""
    cases = load_cases([write(tmp_path / "priced.json", *RUNS)])
    rows = [row | {"step_time_s": SLOWER * price(case).step_s} for row, case in zip(RUNS, cases, strict=True)]
    return write(tmp_path / "runs.json", *rows)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: Any) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["meshwright", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code or 0, out=out, err=err)

    return run


def test_tables_show_figures_and_runs(run: Any, runs: Path) -> None:
    done = run("calibrate", runs)
    assert done.code == 0
    assert "h100-sxm" in done.out and "products (gemm)" in done.out
    assert "-23.1%" in done.out and "run 2" in done.out
    assert "network" not in done.out


def test_a_profile_is_written_and_planned_with(run: Any, runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "Mine 1.toml"
    done = run("calibrate", runs, "-o", path, "--date", "2025-01-31", "--json")
    assert done.code == 0 and f"saved {path}" in done.err
    found = json.loads(done.out)
    gemm = next(figure for figure in found["figures"] if figure["figure"] == "gemm")
    assert gemm["fitted"] > 1.1 * gemm["shipped"] and gemm["runs"] == 3 and gemm["informed"]
    assert all(abs(one["after"]) < abs(one["before"]) for one in found["runs"])
    assert 'name = "mine-1"' in path.read_text() and "runs.json, 2025-01-31" in path.read_text()
    assert run("hardware", "validate", path).code == 0
    steps = [
        json.loads(run("plan", "llama3-8b", "--hardware", f"{name}:1x8", "--json").out)["predicted"]["step_s"]["value"]
        for name in ("h100-sxm", path)
    ]
    assert steps[1] > 1.1 * steps[0]


def test_an_existing_file_is_kept(run: Any, runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("kept")
    done = run("calibrate", runs, "-o", path)
    assert done.code == 4 and "--force" in done.err and path.read_text() == "kept"


def test_few_runs_are_said(run: Any, tmp_path: Path) -> None:
    done = run("calibrate", write(tmp_path / "one.json", RUNS[0]))
    assert done.code == 0
    assert "gemm: 1 runs inform it, 2 are needed; it stays as shipped" in done.err


def test_errors_name_file_or_run(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    for rows, message in (
        ([RUNS[0] | {"trust": "C"}], "no usable run among 1 rows ('run 0': trust C"),
        ([RUNS[0] | {"layers": None}], "run 'run 0' cannot be priced:"),
        ([RUNS[0], RUNS[0] | {"id": "other", "hardware": "A100-80GB-SXM"}], "name one with --hardware"),
    ):
        done = run("calibrate", write(file, *rows))
        assert (done.code, done.out) == (4, "") and message in done.err
    assert run("calibrate", tmp_path / "missing.json").code == 4


def test_the_example_is_a_file_of_runs(run: Any) -> None:
    done = run("validate", "--cases", "examples/runs.json", "--json")
    assert done.code == 0
    rows = [row for row in json.loads(done.out)["rows"] if row["quantity"] == "time"]
    assert len(rows) == 3 and all(abs(row["error"]) < 0.2 for row in rows)
