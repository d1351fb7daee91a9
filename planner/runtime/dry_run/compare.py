"""What a rank did, beside what its plan predicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from planner.dry_run_result import ComparedTraffic, Difference, RankResult, relative
from planner.plan import Plan, StageMemory
from planner.runtime.dry_run.rank import RankLog
from planner.runtime.dry_run.steps import Count, Key, whole_step
from planner.runtime.dry_run.symmetry import Representative
from planner.solvers.traffic import Traffic

SHOWN = 8
"""Modules that are listed per difference."""


def compare(
    log: RankLog,
    representative: Representative,
    *,
    run: Plan,
    plan: Plan,
    traffic: Mapping[str, Sequence[Traffic]],
    memory: StageMemory,
    max_difference: float,
) -> RankResult:
    """Put a rank's log beside the prediction of its pipeline rank.

    Args:
        run: the plan with the microbatches that were run.
        traffic: predicted for ``plan``, by FQN.
        memory: predicted for ``plan``.
        max_difference: relative; what is above is listed by module.
    """
    executed = whole_step(log.calls, log.starts, run, plan)
    expected = {(t.axis, t.kind, fqn): (t.count, t.num_bytes) for fqn, of_module in traffic.items() for t in of_module}
    collectives = tuple(_traffic(_summed(executed), _summed(expected)))
    found, predicted = log.peak.num_bytes, memory.total_bytes
    differences = [
        entry
        for compared in collectives
        if compared.difference > max_difference
        for entry in _of_modules(compared, executed, expected)
    ]
    if relative(found, predicted) > max_difference:
        by_fqn: dict[str, int] = defaultdict(int)
        for (_, fqn), size in log.peak.by_fqn.items():
            by_fqn[fqn] += size
        differences += _largest("peak", by_fqn)
    return RankResult(
        rank=representative.rank,
        represents=representative.represents,
        why=representative.why,
        peak_bytes=found,
        predicted_peak_bytes=predicted,
        memory={str(name): size for name, size in log.peak.categories.items()},
        predicted_memory=dict(memory.parts),
        collectives=collectives,
        differences=tuple(differences),
        cpu_s=log.cpu_s,
        host_bytes=log.host_bytes,
    )


def _summed(by_module: Mapping[Key, Count]) -> dict[tuple[str, str], Count]:
    """By axis and kind."""
    found: dict[tuple[str, str], Count] = {}
    for (axis, kind, _), (count, size) in by_module.items():
        before = found.get((axis, kind), (0, 0))
        found[axis, kind] = before[0] + count, before[1] + size
    return found


def _traffic(
    found: Mapping[tuple[str, str], Count], expected: Mapping[tuple[str, str], Count]
) -> Iterator[ComparedTraffic]:
    for axis, kind in sorted(found.keys() | expected.keys()):
        count, size = found.get((axis, kind), (0, 0))
        predicted_count, predicted_bytes = expected.get((axis, kind), (0, 0))
        yield ComparedTraffic(
            axis=axis, kind=kind, count=count, num_bytes=size,
            predicted_count=predicted_count, predicted_bytes=predicted_bytes,
        )  # fmt: skip


def _of_modules(
    compared: ComparedTraffic, executed: Mapping[Key, Count], expected: Mapping[Key, Count]
) -> list[Difference]:
    """Modules whose collectives of this axis and kind are not those predicted, the furthest off first."""
    keys = {key for key in (*executed, *expected) if key[:2] == (compared.axis, compared.kind)}
    found = [
        Difference(
            what=f"{compared.axis} {compared.kind}", fqn=key[2],
            found=executed.get(key, (0, 0))[1], predicted=expected.get(key, (0, 0))[1],
        )
        for key in keys
        if executed.get(key) != expected.get(key)
    ]  # fmt: skip
    return sorted(found, key=lambda d: (-abs(d.found - (d.predicted or 0)), d.fqn))[:SHOWN]


def _largest(what: str, by_fqn: Mapping[str, int]) -> list[Difference]:
    most = sorted(by_fqn.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
    return [Difference(what=what, fqn=fqn, found=size, predicted=None) for fqn, size in most]
