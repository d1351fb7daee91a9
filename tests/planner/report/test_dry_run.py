from __future__ import annotations

import json
from dataclasses import replace

from planner.dry_run_result import ComparedTraffic, Difference, DryRun, RankResult
from planner.report import dry_run

GATHER = ComparedTraffic(
    axis="tp", kind="all_gather", count=10, num_bytes=1000, predicted_count=10, predicted_bytes=1000
)
RANK = RankResult(
    rank=0, represents=(0, 1, 2, 3), why="all ranks run the same, equal shares", peak_bytes=104,
    predicted_peak_bytes=100, memory={"parameters": 100, "activations": 4}, predicted_memory={"parameters": 100},
    collectives=(GATHER,), differences=(), cpu_s=1.5, host_bytes=3 * 2**30,
)  # fmt: skip
FOUND = DryRun(model="net", world_size=4, num_microbatches=100, run_microbatches=3, max_difference=0.05, ranks=(RANK,))


def test_a_run_as_predicted() -> None:
    assert FOUND.ok and FOUND.ranks[0].largest == 104 / 100 - 1
    lines = dry_run.render(FOUND).splitlines()
    assert lines[0].startswith("net on 4 ranks, 1 of them run; 3 of 100 microbatches, the others repeat them; as pred")
    assert lines[3].split()[:8] == ["0", "4", "104", "B", "100", "B", "4.00%", "0.00%"]
    assert "differs" not in "\n".join(lines)


def test_what_differs_is_said_by_module() -> None:
    extra = replace(GATHER, count=11, num_bytes=1100)
    where = Difference(what="tp all_gather", fqn="layers.3", found=200, predicted=100)
    bad = replace(FOUND, ranks=(replace(RANK, collectives=(extra,), differences=(where,)),))
    assert not bad.ok and bad.ranks[0].largest > 0.09
    shown = dry_run.render(bad)
    assert "NOT as predicted" in shown and "layers.3" in shown
    unpredicted = replace(GATHER, predicted_count=0, predicted_bytes=0)
    assert replace(FOUND, ranks=(replace(RANK, collectives=(unpredicted,)),)).ok is False


def test_json() -> None:
    content = json.loads(dry_run.to_json(FOUND))
    assert (content["ok"], content["world_size"]) == (True, 4)
    [rank] = content["ranks"]
    assert rank["represents"] == [0, 1, 2, 3] and rank["peak_bytes"] == 104 and rank["predicted_peak_bytes"] == 100
    assert rank["collectives"] == [
        {
            "axis": "tp", "kind": "all_gather", "count": 10, "bytes": 1000, "predicted_count": 10,
            "predicted_bytes": 1000,
        }
    ]  # fmt: skip
