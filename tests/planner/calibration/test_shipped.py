from __future__ import annotations

from itertools import product

import pytest
from pydantic import ValidationError

from hardware_profiles.load import names
from planner.calibration.fit import Constant
from planner.calibration.scopes import ARCHITECTURES, BINS, constants_of, meaning, prior_sd
from planner.calibration.shipped import factors, read, shipped, write
from planner.execution import Execution
from planner.solvers.classes import CLASSES
from planner.validation.facts import shipped_cases
from planner.validation.frameworks import execution_of

H100 = {"device": "h100-sxm", "execution": Execution(), "low_precision": False, "experts": False}


def test_constants_belong_to_classes_and_profiles_that_there_are() -> None:
    assert set(constants_of(**H100)) <= set(CLASSES)
    assert BINS <= set(ARCHITECTURES) <= set(names())


def test_every_shipped_constant_belongs_to_something() -> None:
    executions = {execution_of(case)[0] for case in shipped_cases()}
    known = {
        name
        for device, execution, low, experts in product(ARCHITECTURES, executions, (False, True), (False, True))
        for of in constants_of(device=device, execution=execution, low_precision=low, experts=experts).values()
        for name in of
    }
    assert set(shipped().constants) <= known
    for name in known:
        assert prior_sd(name) > 0 and meaning(name)


def test_special_constants_come_on_top_of_general_ones() -> None:
    values = {"gemm": 1.2, "gemm/h100": 1.1, "gemm-fp8": 2.0, "moe": 3.0}
    assert dict(factors(**H100, values=values))["gemm"] == pytest.approx(1.2 * 1.1)
    assert dict(factors(**H100 | {"low_precision": True}, values=values))["gemm"] == pytest.approx(1.2 * 1.1 * 2.0)
    routed = dict(factors(**H100 | {"experts": True}, values=values))
    assert routed["gemm"] == pytest.approx(3.0 * 1.2 * 1.1)
    assert routed["dp"] == 3.0


def test_a_profile_of_ones_own_is_taken_at_its_word() -> None:
    assert factors(**H100 | {"device": "mine"}) == ()
    values = shipped().values
    expected = values["gemm"] * values["gemm/h100"] * values[f"pace/{H100['execution'].generation}"]
    assert dict(factors(**H100))["gemm"] == pytest.approx(expected, rel=1e-9)


def test_the_file_says_what_was_written() -> None:
    text = write(
        (Constant(name="gemm/a", value=1.25, sd=0.05, rows=7, sources=2),), date="2025-01-31", rows=9, sources=3
    )
    found = read(text)
    assert (found.date, found.rows, found.sources, found.values) == ("2025-01-31", 9, 3, {"gemm/a": 1.25})
    with pytest.raises(ValidationError, match="more"):
        read("more = 1\n" + text)
