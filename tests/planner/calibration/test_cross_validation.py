from __future__ import annotations

from math import prod

import pytest

from planner.calibration.cross_validation import constants_without, seconds_without
from planner.calibration.fit import fit
from tests.planner.calibration.synthetic import rows, slower


def test_a_source_does_not_see_its_own_measurements() -> None:
    observed = rows(noise=0.1)
    changed = [slower(row, 1.7) if row.source == "source 2" else row for row in observed]
    before, after = constants_without(observed), constants_without(changed)
    assert {source for source in before if before[source] == after[source]} == {"source 2"}


def test_constants_are_those_of_a_fit_without_the_source() -> None:
    observed = rows(noise=0.1)
    found = constants_without(observed)
    assert len(found) == 5
    for source, values in found.items():
        assert values == pytest.approx(fit([row for row in observed if row.source != source]).values, rel=1e-5)


def test_what_only_one_source_tells_is_not_known_without_it() -> None:
    observed = [row for row in rows() if row.source == "source 1" or "gemm/a" not in row.constants["gemm"]]
    assert constants_without(observed)["source 1"]["gemm/a"] == pytest.approx(1.0)


def test_seconds_without_a_source_are_those_of_its_constants() -> None:
    """Classes times the product of their constants, row by row."""
    observed = rows(noise=0.1)
    values, seconds = constants_without(observed), seconds_without(observed)
    for row in observed:
        own = values[row.source]
        expected = sum(s * prod(own[name] for name in row.constants.get(kind, ())) for kind, s in row.seconds.items())
        assert seconds[row.id] == pytest.approx(expected, rel=1e-5)
