"""Predicted collectives against published measurements, which lie outside of the repository."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks.collectives import BANDS, LARGE, nccl_rows, published_rows

VALIDATION = Path(__file__).parents[2].parent / "shared" / "validation"
NCCL, FACTS = VALIDATION / "nccl_measured.csv", VALIDATION / "hardware_facts.json"


@pytest.mark.skipif(not NCCL.is_file(), reason="measured NCCL timings are not beside this checkout")
def test_one_node_of_nvidia_devices() -> None:
    errors: dict[tuple[str, str], list[float]] = {}
    for row in nccl_rows(NCCL):
        band = next(name for name, low, high in (*BANDS, LARGE) if low <= row.num_bytes < high)
        errors.setdefault((row.profile, band), []).append(abs(row.error))
    assert len(errors) == 16
    for (profile, band), found in errors.items():
        assert statistics.median(found) <= (0.10 if band == LARGE[0] else 0.12), (profile, band)


@pytest.mark.skipif(not FACTS.is_file(), reason="published hardware figures are not beside this checkout")
def test_what_others_measured() -> None:
    rows = [row for row in published_rows(FACTS) if row.num_bytes >= LARGE[1]]
    assert len({row.source for row in rows}) == 6
    errors = [abs(row.error) for row in rows]
    assert statistics.median(errors) <= 0.05
    assert sum(error <= 0.10 for error in errors) >= 0.9 * len(errors)
    assert max(errors) <= 0.25
