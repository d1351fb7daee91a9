"""How much of a step has to be run.

Once a pipeline is full every further microbatch repeats what the one before did, so a step of a thousand is known from
a few: what lies between the starts of two forward passes of a rank's first stage, one period apart, is what one period
more would add. The peak is reached by then, for no more microbatches are in flight later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from planner.plan import Plan
from planner.runtime.dry_run.collectives import Call

STEADY = frozenset({"1f1b", "interleaved-1f1b", "zb-h1", "zb-v", "dualpipe-v"})
"""Schedules with as many microbatches in flight whatever the step has."""

Key = tuple[str, str, str]
"""Axis, kind and FQN of collectives that are counted together."""
Count = tuple[int, int]
"""How many, and their bytes."""


def shortened(plan: Plan) -> Plan:
    """The plan with as few microbatches as show all that happens; itself where it has no more, or lists its actions."""
    c = plan.candidate
    fewer = c.pp + 2 if c.num_chunks == 1 else 3 * c.pp + c.num_microbatches % c.pp
    if (c.pp > 1 and c.schedule not in STEADY) or plan.actions or fewer >= c.num_microbatches:
        return plan
    samples = c.data_parallel * c.microbatch_size * fewer
    job = replace(plan.inputs.job, global_batch=samples)
    return replace(plan, candidate=replace(c, num_microbatches=fewer), inputs=replace(plan.inputs, job=job))


def whole_step(calls: Sequence[Call], starts: Sequence[int], run: Plan, plan: Plan) -> dict[Key, Count]:
    """What a step of ``plan`` issues, from what one of ``run``, its `shortened` form, did.

    Args:
        starts: of every forward pass of the rank's first stage, how many calls came before it.
    """
    found = _counted(calls)
    c = run.candidate
    more = plan.candidate.num_microbatches - c.num_microbatches
    if more:
        period = c.pp if c.num_chunks > 1 else 1
        added = _counted(calls[starts[-1 - period] : starts[-1]])
        for key, (count, size) in added.items():
            before = found[key]
            found[key] = before[0] + count * more // period, before[1] + size * more // period
    return found


def _counted(calls: Sequence[Call]) -> dict[Key, Count]:
    number, size = Counter[Key](), Counter[Key]()
    for call in calls:
        key = call.axis, call.kind, call.fqn
        number[key] += 1
        size[key] += call.num_bytes
    return {key: (number[key], size[key]) for key in number}
