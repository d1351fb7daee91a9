"""Plans written by hand, for models of any kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

from planner.capture.program import ModelProgram
from planner.graph import ModelGraph
from planner.job import Job
from planner.plan import Plan, PlanInputs, Stage
from tests.planner.runtime.stages import candidate


def plan_of(
    graph: ModelGraph,
    *,
    seq_len: int,
    precision: str = "fp32",
    actions: tuple[tuple[str, ...], ...] = (),
    **changes: Any,
) -> Plan:
    """A plan of a candidate (`stages.candidate`), its blocks spread evenly over the stages."""
    c = candidate(**changes)
    job = Job(
        global_batch=c.microbatch_size * c.num_microbatches * c.data_parallel, seq_len=seq_len, precision=precision
    )
    given = PlanInputs(
        model=graph.name, hardware=f"h100-sxm:1x{c.num_devices}", num_devices=c.num_devices, job=job, batch=graph.inputs
    )
    stages = even_stages(graph, c.pp * c.num_chunks)
    return Plan(inputs=given, candidate=c, stages=stages, actions=actions)


def even_stages(graph: ModelGraph, num_stages: int) -> tuple[Stage, ...]:
    """Stretches lie with the blocks before them, the first one with those behind it."""
    blocks = [i for i, segment in enumerate(graph.segments) if segment.prefix]
    starts = [0, *(blocks[len(blocks) * s // num_stages] for s in range(1, num_stages)), len(graph.segments)]
    return tuple(
        Stage(modules=tuple(dict.fromkeys(m for segment in graph.segments[a:b] for m in segment.modules)))
        for a, b in pairwise(starts)
    )


@contextmanager
def captured(program: ModelProgram) -> Iterator[None]:
    """`parallelize` takes this program for the model's: to trace it takes longer than to train it."""
    with mock.patch("planner.runtime.parallel.capture_program", return_value=program):
        yield
