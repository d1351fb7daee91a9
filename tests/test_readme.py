"""README.md: what it prints is what the command prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_printed_output_is_the_commands() -> None:
    shown = re.search(r"<!-- output of: meshwright (.+?) -->\n```\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    command = [sys.executable, "-c", "from planner.cli import main; main()", *shown[1].split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == shown[2]
