from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.errors import UsageError
from planner.solvers.intra_op.contest import read_contest


def raw() -> dict[str, Any]:
    return {
        "problem": {
            "name": "toy",
            "nodes": {"intervals": [[0, 2], [1, 1]], "costs": [[1, 2], [3]], "usages": [[5, 6], [7]]},
            "edges": {"nodes": [[0, 1]], "costs": [[4, 10**18]]},
            "usage_limit": 9,
        }
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_plain_and_gzipped(tmp_path: Path, zipped: bool) -> None:
    text = json.dumps(raw()).encode()
    path = tmp_path / "toy.json"
    path.write_bytes(gzip.compress(text) if zipped else text)
    problem = read_contest(path)
    assert problem.cost((0, 0)) == 1 + 3 + 4 and problem.cost((1, 0)) == np.inf
    assert problem.peak((1, 0)) == 6 and problem.limit == 9
    assert problem.usages[1] == ()


def broken(place: tuple[str | int, ...], value: Any) -> bytes:
    made: Any = raw()
    at = made
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return json.dumps(made).encode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\x1f\x8bnot really", "cannot be read as JSON"),
        (b"[]", "not a contest problem"),
        (broken(("problem",), {"nodes": {}}), "'edges' is missing"),
        (broken(("problem", "nodes", "costs"), [[1]]), "2 intervals, 1 costs and 2 usages"),
        (broken(("problem", "edges", "costs"), []), "1 edges, 0 tables"),
        (broken(("problem", "nodes", "costs", 0), ["a"]), "costs of node 0: could not convert"),
        (broken(("problem", "nodes", "costs", 0), []), "costs of node 0: expected a list of numbers"),
        (broken(("problem", "nodes", "usages", 0), [1]), "node 0: 1 usages for 2 strategies"),
        (broken(("problem", "nodes", "intervals", 1), [1]), r"node 1: interval \[1\]"),
        (broken(("problem", "edges", "nodes", 0), [0, 2]), r"edge 0: \[0, 2\] is not a pair of the 2 nodes"),
        (broken(("problem", "edges", "costs", 0), [1]), "edge 0: 1 costs for 2 x 1 strategies"),
        (broken(("problem", "usage_limit"), "much"), "usage_limit is 'much'"),
    ],
)
def test_says_what_is_wrong_and_where(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text)
    with pytest.raises(UsageError, match=said):
        read_contest(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json"):
        read_contest(tmp_path / "none.json")
