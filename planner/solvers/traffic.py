"""What every rank communicates in one optimizer step under a plan: collectives by axis and kind, with their bytes.

Predicted from the plan and the model alone, exactly as the runtime issues them. All ranks of one pipeline
rank communicate alike. With ``m`` microbatches:

- ``tp``, ``cp``, ``ep``: what the layouts of every operation ask for (`planner.solvers.block_traffic`), ``m`` times,
  and what is recomputed.
- ``dp_shard`` (``dp_shard`` and ``cp`` together): every segment's parameters are gathered, its gradients
  reduce-scattered; of experts over ``expert_shard``. ``dp_replicate``: what is reduced is all-reduced, once.
- ``pp``: activations and their gradients to the neighbouring stages; gradients of tied parameters, summed.
- ``world``: the loss.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from costmodels.compute import DTYPE_BYTES
from costmodels.schedules.actions import parts
from planner.graph import Value
from planner.layouts.data_parallel import padded_numel
from planner.plan import Plan
from planner.solvers.block_layout.planned import PlacedBlocks, placed_blocks, plan_layouts
from planner.solvers.block_layout.values import BlockValues
from planner.solvers.block_traffic import BlockTraffic, Message, Messages, block_traffic
from planner.solvers.parameter_traffic import HeldParam, StageParams
from planner.solvers.setting import Setting
from planner.stages import stage_cuts


@dataclass(frozen=True, order=True)
class Traffic:
    """All collectives of one kind over one axis in one step of one rank."""

    axis: str
    kind: str
    count: int
    num_bytes: int
    """Sum over them (`planner.solvers.block_traffic.Message`)."""


def step_traffic(setting: Setting, plan: Plan, placed: PlacedBlocks | None = None) -> tuple[tuple[Traffic, ...], ...]:
    """Per rank of ``pp``, what each of its devices communicates in one step, by axis and kind.

    Of tensors that do not divide, the device at the beginning of every axis counts.

    Args:
        placed: layouts of the plan's operations, where they are known.
    Raises:
        UsageError: see `placed_blocks` and `stage_cuts`.
    """
    found = _Step(setting, plan, placed or placed_blocks(setting, plan))
    return tuple(_summed(sum(found.of_rank(rank).values(), Counter())) for rank in range(plan.candidate.pp))


def segment_traffic(
    setting: Setting, plan: Plan, placed: PlacedBlocks | None = None
) -> tuple[Mapping[str, tuple[Traffic, ...]], ...]:
    """The same per segment, by the FQN of its block or of its first module; under no name what belongs to none."""
    found = _Step(setting, plan, placed or placed_blocks(setting, plan))
    return tuple(
        {fqn: _summed(messages) for fqn, messages in found.of_rank(rank).items()} for rank in range(plan.candidate.pp)
    )


def _summed(messages: Messages) -> tuple[Traffic, ...]:
    count: Counter[tuple[str, str]] = Counter()
    num_bytes: Counter[tuple[str, str]] = Counter()
    for message, times in messages.items():
        count[message.axis, message.kind] += times
        num_bytes[message.axis, message.kind] += times * message.num_bytes
    return tuple(sorted(Traffic(*key, count[key], num_bytes[key]) for key in count if count[key]))


@dataclass(frozen=True)
class _Step:
    setting: Setting
    plan: Plan
    placed: PlacedBlocks

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        return stage_cuts(self.setting.graph, self.plan.stages)

    @cached_property
    def params(self) -> StageParams:
        layouts = plan_layouts(self.setting.graph, self.plan).at(self.plan.candidate.tp)
        return StageParams(self.setting, self.plan, [dict(layout.params) for layout in layouts])

    @cached_property
    def blocks(self) -> tuple[BlockTraffic, ...]:
        c, mesh = self.plan.candidate, self.placed.mesh
        prefixes = {segment.block: segment.prefix for segment in self.setting.graph.segments}
        return tuple(
            block_traffic(BlockValues(self.setting, b, c.microbatch_size, mesh), found, self.plan, prefixes[b])
            for b, found in enumerate(self.placed.blocks)
        )

    def of_rank(self, rank: int) -> dict[str, Messages]:
        """By FQN of a segment."""
        total: dict[str, Messages] = defaultdict(Counter)
        for stage, holder in enumerate(self.plan.stage_ranks):
            if holder == rank:
                a, b = self.cuts[stage], self.cuts[stage + 1]
                for i in range(a, b):
                    total[self._name(i)].update(self._passes(stage, i))
                for i, messages in self.params.messages(a, b).items():
                    total[self._name(i)].update(messages)
                total[""].update(self._sent(stage))
        total[""].update(self._tied(rank))
        if self.plan.candidate.num_devices > 1:
            total[""][Message("world", "all_reduce", DTYPE_BYTES["float32"])] += 1
        return total

    def _name(self, i: int) -> str:
        segment = self.setting.graph.segments[i]
        return segment.prefix or next(iter(segment.modules), "")

    def _passes(self, stage: int, i: int) -> Messages:
        """Of a segment, over ``tp``, ``cp`` and ``ep``."""
        total, traffic = Counter[Message](), self.blocks[self.setting.block_of[i]]
        # A backward pass in two halves computes again for each; the first stage has only one.
        again = 2 if stage and self._splits_backward else 1
        passes = [(1, traffic.forward), (1, traffic.backward)]
        passes += [(again, traffic.again)] if i in self._recomputed(stage) else []
        for times, messages in passes:
            for message, count in messages.items():
                total[message] += self.plan.candidate.num_microbatches * times * count
        return total

    @cached_property
    def _splits_backward(self) -> bool:
        return any(action.kind in "IW" for row in self.plan.order.orders for entry in row for action in parts(entry))

    def _recomputed(self, stage: int) -> Sequence[int]:
        """Segments of a stage that compute again: the first of its blocks."""
        named = [i for i in range(self.cuts[stage], self.cuts[stage + 1]) if self.setting.graph.segments[i].prefix]
        return named[: self.plan.candidate.recomputed_blocks]

    def _sent(self, stage: int) -> Messages:
        """Activations that come and go, and their gradients."""
        ranks, total = self.plan.stage_ranks, Counter[Message]()
        for end in (stage, stage + 1):
            if 0 < end < len(ranks) and ranks[end - 1] != ranks[end]:
                for value in self.setting.graph.crossings[self.cuts[end] - 1]:
                    for kind in ("send", "recv"):
                        total[Message("pp", kind, self._crossing_bytes(value))] += self.plan.candidate.num_microbatches
        return total

    def _crossing_bytes(self, value: Value) -> int:
        """On one device: activations lie along the sequence over ``cp``, and under sequence parallelism over ``tp``."""
        c, seq_len = self.plan.candidate, self.setting.job.seq_len
        shares = c.cp * (c.tp if c.sequence_parallel else 1)
        along = any(d.slope and not d.per_batch and d.at(1, seq_len) % shares == 0 for d in value.dims)
        numel = prod(value.shape(c.microbatch_size, seq_len))
        return numel // (shares if along else 1) * DTYPE_BYTES[value.dtype]

    def _tied(self, rank: int) -> Messages:
        """Gradients of parameters that several ranks hold: each sums its own part with the others'."""
        holders: dict[str, dict[int, HeldParam]] = {}
        for stage, holder in enumerate(self.plan.stage_ranks):
            for held in self.params.of_segment[self.cuts[stage] : self.cuts[stage + 1]]:
                for param in held:
                    holders.setdefault(param.fqn, {}).setdefault(holder, param)
        total, n = Counter[Message](), self.plan.candidate.state_shard
        for found in holders.values():
            if rank in found and len(found) > 1 and found[rank].trained:
                numel = padded_numel(found[rank].shape, n) // n
                total[Message("pp", "all_reduce", numel * self.setting.precision.param_bytes)] += 1
        return total
