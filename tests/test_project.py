"""What holds for the project as a whole: light commands, the direction of imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAIN = "from planner.cli import main; main()"


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["hardware", "list"]], ids=" ".join)
def test_light_commands_do_not_import_torch(arguments: list[str]) -> None:
    code = f"""
import sys
try:
    {MAIN.replace("; ", chr(10) + "    ")}
finally:
    print(*(name for name in ("torch", "transformers", "scipy", "pulp") if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == ""
    assert done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["hardware", "list"]], ids=" ".join)
def test_light_commands_take_under_half_a_second_of_cpu(arguments: list[str]) -> None:
    # Neighbours on the machine only ever add: one run that is fast enough shows that it is.
    assert any(_cpu_s(arguments) < 0.5 for _ in range(8))


def _cpu_s(arguments: list[str]) -> float:
    """User and system seconds of one run, Python's own start included."""
    child = subprocess.Popen([sys.executable, "-c", MAIN, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_imports_point_one_way() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
