from __future__ import annotations

import json

from planner.layouts.strategies import Coverage, OpCoverage
from planner.report import coverage

FOUND = Coverage(
    ops=(
        OpCoverage("mm", "linear", 30, 0.9, 0.6, 8),
        OpCoverage("view", "views", 60, 0.0, 0.0, 6),
        OpCoverage("strange", None, 10, 0.1, 0.4, 2),
    ),
    unruled=(("strange", "layers.0.mixer"), ("strange", "")),
)


def test_operations_their_rules_and_shares() -> None:
    assert coverage.render("net", FOUND).splitlines() == [
        "net: 90.0% of 100 forward calls have a layout rule",
        "",
        "operation rule             calls  FLOP bytes options per axis",
        "mm        linear              30 90.0% 60.0%                8",
        "view      views               60                            6",
        "strange   none: replicated    10 10.0% 40.0%                2",
        "",
        "without a rule:",
        "  strange in layers.0.mixer",
        "  strange in .",
    ]


def test_json_says_the_same() -> None:
    content = json.loads(coverage.to_json("net", FOUND))
    assert (content["model"], content["ruled_share"]) == ("net", 0.9)
    assert [op["ruled"] for op in content["operations"]] == [True, True, False]
    assert content["unruled"][0] == {"operation": "strange", "module": "layers.0.mixer"}
