from __future__ import annotations

import json
from importlib import resources

from planner.validation.case_files import load_cases
from planner.validation.facts import FILE, pack, shipped_cases, unpack
from tests.planner.validation.rows import case, published


def test_what_is_packed_comes_back() -> None:
    cases = (
        case(id="a", stage_layers=(1, 2), precision="bf16"),
        case(id="b", precision="bf16"),
        case(id="c", group="another"),
        case(id="d"),
    )
    content = json.loads(pack(cases))
    assert unpack(content) == cases
    assert [part["columns"] for part in content["groups"]] == [["id", "stage_layers"], [], []]


def test_shipped_rows_are_the_published_ones() -> None:
    assert shipped_cases() == load_cases([published()])


def test_shipped_rows_are_small_and_facts_alone() -> None:
    text = resources.files("planner.validation").joinpath("data", FILE).read_text(encoding="utf-8")
    assert len(text.encode()) < 600_000
    cases = shipped_cases()
    assert sum(case.scored for case in cases) == 775
    assert all(case.source and case.date for case in cases if case.scored)
    # Codes and citations, no sentences.
    codes = {
        word
        for case in cases
        for word in (case.precision, case.task, case.optimizer, case.offload, case.memory_kind, case.flops_kind)
        if word is not None
    }
    assert all(len(word) <= 15 for word in codes)
