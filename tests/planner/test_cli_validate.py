from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from planner import cli
from planner.validation.cases import CannotPriceError, Case
from tests.planner.validation.rows import ROW, Price, write

ROWS = [
    ROW | {"id": "close", "core": True, "step_time_s": 2.0, "peak_memory_gib": 30.0, "memory_kind": "max allocated"},
    ROW | {"id": "far", "core": True, "step_time_s": 1.0, "hardware": "H100-80GB-SXM"},
    ROW | {"id": "routed", "step_time_s": 1.0, "experts": 8},
    ROW | {"id": "failed", "notes": "OOM outcome", "ready_except_recompute": False},
]


@pytest.fixture
def calibrations() -> list[bool]:
    return []


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, calibrations: list[bool]
) -> Any:
    """Runs ``meshwright validate`` over `ROWS` at two seconds each: exit code, stdout, stderr."""
    file = write(tmp_path / "rows.json", *ROWS)

    def price(row: Case, *, calibrated: bool = True) -> Price:
        calibrations.append(calibrated)
        if row.id == "routed":
            raise CannotPriceError("experts are not priced")
        return Price(2.0)

    pricing: Any = ModuleType("planner.validation.pricing")
    pricing.price = pricing.price_with = price
    monkeypatch.setitem(sys.modules, "planner.validation.pricing", pricing)

    def run(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["meshwright", "validate", "--cases", str(file), *arguments])
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code, out=out, err=err)

    return run


def test_tables_go_to_stdout(run: Any, calibrations: list[bool]) -> None:
    done = run()
    assert (done.code, done.err) == (0, "")
    assert "+100.0%" in done.out and "4 rows, 3 scored, 2 of these priced" in done.out
    assert calibrations == [True] * 4
    run("--datasheet")
    assert calibrations[4:] == [False] * 4


def test_json_has_rows_and_summary(run: Any) -> None:
    content = json.loads(run("--json").out)
    assert list(content) == ["rows", "summary"]
    wanted = ["id", "group", "quantity", "predicted", "measured", "unit", "error", "why"]
    assert all(list(row)[: len(wanted)] == wanted for row in content["rows"])
    assert [(row["id"], row["quantity"], row["error"]) for row in content["rows"]] == [
        ("close", "time", 0.0),
        ("close", "memory", 0.0),
        ("far", "time", 1.0),
        ("routed", "time", None),
        ("failed", "memory", None),
    ]
    assert content["rows"][3]["why"] == "experts are not priced"
    assert content["summary"]["headline"]["dense"]["median"] == 0.5


def test_rows_are_chosen_by_hardware_and_core(run: Any) -> None:
    rows = json.loads(run("--json", "--hardware", "H100-80GB-SXM").out)["rows"]
    assert {row["id"] for row in rows} == {"far"}
    rows = json.loads(run("--json", "--core").out)["rows"]
    assert {row["id"] for row in rows} == {"close", "far"}
    done = run("--hardware", "A100")
    assert done.code == 4 and "unknown hardware" in done.err and "A100-80GB-SXM" in done.err


def test_a_median_beyond_the_limit_is_exit_code_6(run: Any) -> None:
    assert run("--max-median", "50").code == 0
    done = run("--max-median", "49.9")
    assert done.code == 6 and "the median error is 50.0%, at most 49.9% is allowed" in done.err
    assert "scored" in done.out
    assert run("--max-median", "nan").code == 2
    done = run("--max-median", "90", "--hardware", "H100-80GB-SXM")
    assert done.code == 6 and "100.0%" in done.err


def test_docs_are_written(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run("--docs", str(tmp_path / "docs"), "--date", "2025-01-31")
    assert (done.code, done.out) == (0, "")
    page = (tmp_path / "docs" / "accuracy.md").read_text()
    assert "Made on 2025-01-31 with `meshwright validate" in page
    assert (tmp_path / "docs" / "accuracy.svg").read_text().startswith("<?xml")
    done = run("--docs", str(tmp_path / "rows.json"))
    assert done.code == 2 and "the page cannot be written there" in done.err


def test_a_broken_file_is_exit_code_4(run: Any, tmp_path: Path) -> None:
    broken = write(tmp_path / "broken.json", ROW | {"id": "wrong", "tp": "8"})
    done = run("--cases", str(broken))
    assert done.code == 4 and "row 'wrong': tp:" in done.err


def test_rows_and_statistics_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from planner.validation import command, facts, page, report, statistics\n"
        "report.render((), statistics.summarise(()), width=80); facts.shipped_cases()\n"
        "print(*(name for name in ('torch', 'matplotlib') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
