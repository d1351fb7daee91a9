"""What the tests of validation share: rows as files have them, cases, prices, outcomes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from costmodels.units import GIB
from planner.validation.cases import Case
from planner.validation.metrics import measured_step_s
from planner.validation.outcomes import Outcome

PUBLISHED = Path(__file__).parents[3].parent / "shared" / "validation" / "cases.json"

ROW: dict[str, Any] = {
    "id": "one",
    "group": "sweep",
    "source": "A paper",
    "hardware": "A100-80GB-SXM",
    "framework": "Megatron-LM",
    "model": "GPT 1B",
    "trust": "A",
    "main_kind": "tp",
    "ready_except_recompute": True,
}


@dataclasses.dataclass(frozen=True)
class Price:
    """As `planner.validation.pricing.Priced`."""

    step_s: float
    peak_bytes: int = 40 * GIB
    capacity_bytes: int = 80 * GIB
    allocated_bytes: int = 30 * GIB
    terms: Mapping[str, float] = dataclasses.field(default_factory=dict)
    assumptions: tuple[str, ...] = ()


def published() -> Path:
    """The file of published rows; the test is skipped where it is not there."""
    if not PUBLISHED.exists():
        pytest.skip(f"published measurements not found at {PUBLISHED}")
    return PUBLISHED


def write(path: Path, *rows: Any) -> Path:
    """A file of measured rows."""
    path.write_text(json.dumps({"format": 1, "cases": rows}))
    return path


def case(**fields: Any) -> Case:
    """A scored case with a step of one second, and what else is given."""
    return Case(
        **{
            "id": "one", "group": "sweep", "source": "A paper", "hardware": "A100-80GB-SXM", "framework": "megatron-lm",
            "model": "GPT 1B", "trust": "A", "main_kind": "tp", "ready_except_recompute": True, "gpus": 8,
            "global_batch": 64, "seq_len": 2048, "step_time_s": 1.0,
        }
        | fields
    )  # fmt: skip


def outcome(step_s: float | None = 1.0, *, peak_gib: float = 40, why: str | None = None, **fields: Any) -> Outcome:
    """A case priced at ``step_s``; None: without a price."""
    found = case(**fields)
    price: Any = None if step_s is None else Price(step_s, peak_bytes=int(peak_gib * GIB))
    return Outcome(found, price, why, measured_step_s(found))
