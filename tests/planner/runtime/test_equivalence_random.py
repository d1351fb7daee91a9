"""Plans drawn from the space that the planner searches train as one process does."""

from __future__ import annotations

from dataclasses import asdict
from random import Random

import pytest
import torch

from hardware_profiles.load import load_cluster
from planner.job import Constraints, Job
from planner.plan import Candidate
from planner.solvers.search import _Space
from planner.solvers.setting import Setting
from tests.planner.runtime.equivalence import Case, _program, _subject, compare

COUNT = 4


def candidates(family: str) -> list[Candidate]:
    """What the search would price for 8 samples on 4 devices."""
    key = Case(family, {"pp": 4}).key
    graph, seq_len = _program(key, 2, torch.float32).graph, _subject(key).seq_len
    job = Job(global_batch=8, seq_len=seq_len, precision="fp32")
    return list(_Space(Setting(graph, load_cluster("h100-sxm:1x4"), job), Constraints()).candidates())


@pytest.mark.parametrize("family", ["gqa"])
def test_random_plans_of_the_search(family: str) -> None:
    chosen = Random(0).sample(candidates(family), COUNT)
    cases = [Case(family, asdict(candidate)) for candidate in chosen]
    found = compare(4, cases, timeout_s=120)
    wrong = [(str(case), worst) for case, worst in zip(cases, found, strict=True) if worst.beyond()]
    assert not wrong
