"""What data parallelism communicates of a stage's parameters in one step, by the rules of
``planner/runtime/data_parallel.py``.

A *group* is a segment, or several that share a parameter; its experts are a group of their own where ``ep`` divides
them. Over ``n`` devices, with ``m`` microbatches:

- all-gather of all parameters in the compute precision: ``2 m`` times under ``zero_stage`` 3 (forward, and backward
  where the gradient goes further), else once;
- reduce-scatter of all gradients, as they are reduced: ``m`` times under 2 and 3, else once;
- over ``dp_replicate``, all-reduce of a device's part of that, once.

Parameters without dims are all-reduced by themselves, once over each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.layouts.data_parallel import Shape, padded_numel
from planner.layouts.experts import find_experts
from planner.layouts.pins import matches
from planner.layouts.tensor_parallel import ParamShard
from planner.plan import Plan
from planner.solvers.block_traffic import Message, Messages
from planner.solvers.setting import Setting


@dataclass(frozen=True)
class HeldParam:
    """A parameter as one device of a stage has it, before data parallelism divides it."""

    fqn: str
    segment: int
    shape: Shape
    trained: bool
    expert: bool
    """Divided by ``ep``."""


@dataclass(frozen=True)
class StageParams:
    """Parameters of segments under a plan."""

    setting: Setting
    plan: Plan
    shards: Sequence[dict[str, ParamShard]]
    """Per block, what ``tp`` shards, by relative FQN."""

    @cached_property
    def of_segment(self) -> tuple[tuple[HeldParam, ...], ...]:
        graph, c = self.setting.graph, self.plan.candidate
        whole = {param.fqn: param.shape for param in graph.params}
        experts = [find_experts(block) if c.ep > 1 else None for block in graph.blocks]
        found = []
        for i, segment in enumerate(graph.segments):
            b, routed = segment.block, experts[segment.block]
            held = []
            for relative, _ in graph.blocks[b].params:
                fqn = graph.canonical(segment, relative)
                expert = routed is not None and relative in routed.params
                shape = whole[fqn]
                if expert:
                    shape = (self._held_experts(segment.prefix, shape[0]), *shape[1:])
                elif (shard := self.shards[b].get(relative)) and c.tp > 1:
                    shape = (*shape[: shard.dim], shape[shard.dim] // c.tp, *shape[shard.dim + 1 :])
                held.append(HeldParam(fqn, i, shape, relative in self.setting.trained[b], expert))
            found.append(tuple(held))
        return tuple(found)

    def _held_experts(self, block: str, num_experts: int) -> int:
        for placed in self.plan.experts:
            if matches(placed.block, block):
                return sum(map(len, placed.ranks)) // self.plan.candidate.ep
        return -(-num_experts // self.plan.candidate.ep)

    def groups(self, a: int, b: int) -> list[list[HeldParam]]:
        """Parameters of segments [a, b), each once, by group, in order of execution."""
        groups: list[dict[str, HeldParam]] = []
        for i in range(a, b):
            own = {param.fqn: param for param in self.of_segment[i]}
            for other in [group for group in groups if group.keys() & own.keys()]:
                groups.remove(other)
                own = other | own
            if own:
                groups.append(own)
        return [list(group.values()) for group in groups]

    def messages(self, a: int, b: int) -> dict[int, Messages]:
        """Of a stage of segments [a, b), by the first segment of every group."""
        c, found = self.plan.candidate, dict[int, Messages]()
        goes_on = a > 0  # activations from the stage before want gradients
        for group in self.groups(a, b):
            goes_on = goes_on or any(param.trained for param in group)
            dense = [param for param in group if not param.expert]
            experts = [param for param in group if param.expert]
            found[min(param.segment for param in group)] = self._of_group(
                dense, "dp_shard", c.state_shard, goes_on
            ) + self._of_group(experts, "expert_shard", c.expert_shard, goes_on)
        return found

    def _of_group(self, group: Sequence[HeldParam], axis: str, shards: int, goes_on: bool) -> Messages:
        c, precision, total = self.plan.candidate, self.setting.precision, Counter[Message]()
        divided = [param for param in group if param.shape]
        numel = sum(padded_numel(param.shape, shards) for param in divided)
        trained = sum(padded_numel(param.shape, shards) for param in divided if param.trained)
        scalars = sum(not param.shape and param.trained for param in group)
        m = c.num_microbatches
        if shards > 1:
            gathers = m * (2 if goes_on else 1) if c.zero_stage == 3 else 1
            total[Message(axis, "all_gather", numel * precision.gathered_bytes)] += gathers if numel else 0
            reductions = m if c.zero_stage >= 2 else 1
            total[Message(axis, "reduce_scatter", trained * precision.reduced_bytes)] += reductions if trained else 0
            total[Message(axis, "all_reduce", precision.param_bytes)] += scalars
        if c.dp_replicate > 1:
            reduced = Message("dp_replicate", "all_reduce", trained // shards * precision.reduced_bytes)
            total[reduced] += 1 if trained else 0
            total[Message("dp_replicate", "all_reduce", precision.param_bytes)] += scalars
        return total
