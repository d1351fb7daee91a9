"""Write the measured rows that Meshwright ships: ``python -m benchmarks.ship_cases CASES.json ...``.

Reads files of measured rows (``planner.validation.case_files``) and writes ``planner/validation/data/cases.json``:
their facts as codes and numbers, without the texts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import planner.validation
from planner.validation.case_files import load_cases
from planner.validation.facts import FILE, pack

SHIPPED = Path(planner.validation.__file__).parent / "data" / FILE


def main() -> None:
    """Pack the rows of all files, in order."""
    cases = load_cases(Path(name) for name in sys.argv[1:])
    text = pack(cases)
    SHIPPED.write_text(text, encoding="utf-8")
    print(f"{len(cases)} rows in {SHIPPED} ({len(text.encode()):,} bytes)")


if __name__ == "__main__":
    main()
