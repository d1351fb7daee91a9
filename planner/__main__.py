"""``python -m planner``, or with ``torchrun -m planner`` on many processes: the ``meshwright`` command."""

from __future__ import annotations

from planner.cli import main

main()
