from __future__ import annotations

import pytest

from planner.calibration.cross_validation import constants_without
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
