"""How far training under plans is from training in one process: `python -m benchmarks.equivalence [FAMILY ...]`.

Small models of every family under every plan of `tests.planner.runtime.matrix`, on 4 and 8 gloo processes of this
machine, in float32: three steps of AdamW with clipped gradients. Prints a Markdown table with the largest differences
from the single-process model: of the loss, of the norm of all gradients (relative), and of any gradient (relative to
the largest). Takes about half an hour on two quiet cores. Exit 1 when a difference is beyond what the tests allow.
"""

from __future__ import annotations

import logging
import platform
import sys
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import torch

from planner.errors import MeshwrightError
from tests.planner.runtime.equivalence import GRADIENT, LOSS, STEPS, Case, Worst, compare, prepare
from tests.planner.runtime.matrix import FAMILIES, plans

RANKS = (4, 8)
TIMEOUT_S = 600.0


def rows(family: str, num_ranks: int) -> Iterator[tuple[str, Worst | str]]:
    """Per plan, the differences or why there is none."""
    cases: dict[str, Case] = {}
    for name, changes in plans(family, num_ranks).items():
        case = Case(family, changes)
        try:
            prepare([case])
        except MeshwrightError as error:
            yield name, str(error)
        else:
            cases[name] = case
    yield from zip(cases, compare(num_ranks, list(cases.values()), timeout_s=TIMEOUT_S), strict=True)


def main(families: Sequence[str]) -> int:
    """The table of some families; the exit status."""
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    print(f"{datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, {platform.machine()}, {STEPS} steps of AdamW in "
          f"float32; allowed: loss {LOSS:g}, gradients {GRADIENT:g}.")  # fmt: skip
    print("\n| model | processes | plan | loss | norm | gradient | of |\n|---|---|---|---|---|---|---|")
    wrong, refused = 0, []
    for family in families:
        for num_ranks in RANKS:
            for name, worst in rows(family, num_ranks):
                if isinstance(worst, str):
                    refused.append(f"- {family}, {name}: {worst}")
                    continue
                wrong += worst.beyond()
                said = (
                    f"{worst.loss:.1e} | {worst.norm:.1e} | {worst.gradient:.1e} | {worst.where}"
                    if not worst.error
                    else f"failed: {worst.error.splitlines()[-1]} | | |"
                )
                print(f"| {family} | {num_ranks} | {name} | {said} |", flush=True)
    if refused:
        print("\nRefused:\n\n" + "\n".join(refused))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or FAMILIES))
