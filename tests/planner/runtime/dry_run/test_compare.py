"""A rank's log beside predictions, by hand."""

from __future__ import annotations

from planner.plan import StageMemory
from planner.runtime.dry_run.collectives import Call
from planner.runtime.dry_run.compare import compare
from planner.runtime.dry_run.memory import Peak
from planner.runtime.dry_run.rank import RankLog
from planner.runtime.dry_run.symmetry import Representative
from planner.solvers.traffic import Traffic
from tests import factories

PEAK = Peak(100, {"parameters": 60, "activations": 40}, {("parameters", "a"): 60, ("activations", "b"): 40})


def gather(fqn: str, size: int = 8) -> Call:
    return Call(
        kind="all_gather", axis="tp", group=(0, 1), shapes=((size // 4,),), dtype="float32", num_bytes=size, fqn=fqn,
        backward=False,
    )  # fmt: skip


def compared(calls: tuple[Call, ...], *, predicted_peak: int = 100, allowed: float = 0.05):
    plan = factories.plan()
    return compare(
        RankLog(calls=calls, starts=(), peak=PEAK, cpu_s=1.0, host_bytes=1),
        Representative(0, (0, 1), "equal"),
        run=plan,
        plan=plan,
        traffic={"a": [Traffic("tp", "all_gather", 1, 8)], "b": [Traffic("tp", "all_gather", 1, 8)]},
        memory=StageMemory(parts={"parameters": predicted_peak}),
        max_difference=allowed,
    )


def test_as_predicted() -> None:
    found = compared((gather("a"), gather("b")))
    assert found.largest == 0 and found.differences == ()
    assert found.memory == {"parameters": 60, "activations": 40}


def test_one_more_is_found_in_its_module() -> None:
    found = compared((gather("a"), gather("b"), gather("b")))
    [total] = found.collectives
    assert (total.count, total.predicted_count, total.difference) == (3, 2, 0.5)
    [where] = found.differences
    assert (where.what, where.fqn, where.found, where.predicted) == ("tp all_gather", "b", 16, 8)


def test_other_sizes_and_what_nobody_predicted() -> None:
    found = compared((gather("a", 12), gather("b"), gather("c")))
    assert [d.fqn for d in found.differences] == ["c", "a"]
    assert compared((gather("a"),)).collectives[0].difference == 0.5


def test_a_peak_that_is_off_names_who_holds_most() -> None:
    found = compared((gather("a"), gather("b")), predicted_peak=80)
    assert found.largest == 0.25
    assert [(d.what, d.fqn, d.found) for d in found.differences] == [("peak", "a", 60), ("peak", "b", 40)]
    assert compared((gather("a"), gather("b")), predicted_peak=80, allowed=0.3).differences == ()
