from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from planner.calibration.fit import KNEE, NOISE_SD, Design, fit
from planner.calibration.scopes import prior_sd
from tests.planner.calibration.synthetic import TRUE, WIDE, rows, slower


def test_known_constants_are_recovered() -> None:
    found = fit(rows(), lambda _: WIDE)
    assert found.values == pytest.approx(TRUE, rel=1e-3)
    assert max(map(abs, found.residuals.values())) < 1e-3
    assert found == fit(rows(), lambda _: WIDE)


def test_standard_errors_cover_what_noise_does() -> None:
    """Over repeated measurements with the noise that is assumed, constants scatter as their errors say."""
    fits = [fit(rows(noise=NOISE_SD, seed=seed), lambda _: WIDE) for seed in range(40)]
    for j, constant in enumerate(fits[0].constants):
        scatter = np.std([np.log(one.constants[j].value / TRUE[constant.name]) for one in fits])
        stated = np.mean([one.constants[j].sd / one.constants[j].value for one in fits])
        # A row alone in its group has twice the weight of its noise.
        assert 0.7 < stated * np.sqrt(2) / scatter < 1.6, constant.name


def test_a_few_rows_that_nobody_can_explain_change_little() -> None:
    spoilt = [slower(row, 3.0) if i in (7, 20, 41) else row for i, row in enumerate(rows())]
    assert fit(spoilt, lambda _: WIDE).values == pytest.approx(TRUE, rel=0.1)


def test_without_data_a_constant_is_one() -> None:
    idle = [row for row in rows() if "gemm/a" not in row.constants["gemm"]]
    one = rows()[1]
    lost = type(one)(
        id="idle", source="x", group="x", measured_s=1.0, seconds={"gemm": 0.0, "dp": 1.0}, constants=one.constants
    )
    found = {constant.name: constant for constant in fit([*idle, lost]).constants}
    assert found["gemm/a"].value == pytest.approx(1.0)
    assert found["gemm/a"].sd == pytest.approx(prior_sd("gemm/a"))
    assert (found["gemm/a"].rows, found["gemm/a"].sources) == (0, 0)
    assert found["gemm"].rows == 30


def test_priors_pull_towards_one() -> None:
    free, held = fit(rows()[:3], lambda _: WIDE).values, fit(rows()[:3]).values
    assert abs(np.log(held["dp"])) < abs(np.log(free["dp"]))


def test_the_minimum_is_that_of_a_general_solver() -> None:
    observed = [slower(row, 1.4) if i % 9 == 0 else row for i, row in enumerate(rows(noise=0.1))]
    design = Design(observed, prior_sd)

    def loss(theta: np.ndarray) -> float:
        size = np.abs(design.log_measured - design.at(theta)[0])
        huber = np.where(size <= KNEE, size**2 / 2, KNEE * (size - KNEE / 2))
        return float(design.weights @ huber / NOISE_SD**2 + design.precision @ theta**2 / 2)

    other = minimize(loss, np.zeros(len(design.names)), method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(design.solve(design.weights), other.x, atol=1e-4)
