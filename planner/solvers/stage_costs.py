"""Seconds and bytes of every possible pipeline stage of one candidate, as matrices over (first, last) segment.

Everything is additive over segments, but for what stands at a stage's borders (sends, the first gather) and for the
largest block's transient memory; so prefix sums and running maxima give all stages at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from costmodels import communication, compute, memory
from costmodels.compute import DTYPE_BYTES
from costmodels.overlap import Array, Exposed, exposed
from costmodels.pipeline import in_flight
from costmodels.step import Seconds, StageSeconds
from hardware_profiles.cluster import Cluster, Group
from hardware_profiles.topology import boundary, group
from planner.execution import EAGER, Execution
from planner.graph import ModelGraph, Value
from planner.job import Job
from planner.layouts.data_parallel import padded_numel
from planner.plan import Candidate, StageMemory
from planner.solvers.inter_op import Mask, Matrix
from planner.solvers.prices import BlockPrice
from planner.solvers.ranges import range_maxima, range_second, range_sums


@dataclass(frozen=True)
class Setting:
    """What all candidates of one search share."""

    graph: ModelGraph
    cluster: Cluster
    job: Job
    execution: Execution = EAGER

    @property
    def precision(self) -> memory.Precision:
        return memory.PRECISIONS[self.job.precision]

    @property
    def num_states(self) -> int:
        return memory.OPTIMIZERS[self.job.optimizer]

    @cached_property
    def block_of(self) -> list[int]:
        return [segment.block for segment in self.graph.segments]

    @cached_property
    def named(self) -> Array:
        """Per segment: 1 where it has modules of its own; a stretch of bare operations between two blocks has none and
        cannot be a stage by itself."""
        return np.array([float(bool(segment.modules)) for segment in self.graph.segments])

    @cached_property
    def tied(self) -> tuple[tuple[int, int, str], ...]:
        """(segment, next segment, relative FQN in the latter) of every two neighbouring readers of one parameter."""
        previous: dict[str, int] = {}
        pairs = []
        for i, segment in enumerate(self.graph.segments):
            for relative, _ in self.graph.blocks[segment.block].params:
                fqn = self.graph.canonical(segment, relative)
                if fqn in previous:
                    pairs.append((previous[fqn], i, relative))
                previous[fqn] = i
        return tuple(pairs)

    @cached_property
    def trained(self) -> tuple[frozenset[str], ...]:
        """Per block, the relative FQNs of parameters that receive gradients, there or (tied ones) elsewhere."""
        graph = self.graph
        receive = {graph.canonical(s, fqn) for s in graph.segments for fqn, _ in graph.blocks[s.block].param_grads}
        trained: dict[int, frozenset[str]] = {}
        for s in graph.segments:
            params = graph.blocks[s.block].params
            trained[s.block] = frozenset(fqn for fqn, _ in params if graph.canonical(s, fqn) in receive)
        return tuple(trained[block] for block in range(len(graph.blocks)))


@dataclass(frozen=True)
class StageCosts:
    """Prices of one candidate. Arrays are per segment."""

    setting: Setting
    candidate: Candidate
    prices: Sequence[BlockPrice]
    """Per distinct block."""

    def per_segment(self, per_block: Sequence[float]) -> Array:
        return np.asarray(per_block, dtype=np.float64)[self.setting.block_of]

    # --- seconds ---------------------------------------------------------------------------------------------------

    @cached_property
    def recomputed(self) -> Array:
        """Per segment: 1 where ``recompute`` applies. A limited number of blocks per stage are spread evenly."""
        c = self.candidate
        blocks: Array = np.array([float(bool(s.prefix)) for s in self.setting.graph.segments])
        if c.recomputed_blocks is None:
            return blocks
        share = min(1.0, c.recomputed_blocks * c.pp * c.num_chunks / max(blocks.sum(), 1.0))
        limited: Array = blocks * share
        return limited

    @cached_property
    def forward_s(self) -> Array:
        return self.per_segment([p.forward.total for p in self.prices])

    @cached_property
    def backward_s(self) -> Array:
        """Backward with recomputation: what gradient communication can hide behind."""
        again = self.per_segment([p.again[self.candidate.recompute].total for p in self.prices])
        return self.per_segment([p.backward.total for p in self.prices]) + self.recomputed * again + self.accumulate_s

    @cached_property
    def offload_s(self) -> tuple[Array, Array]:
        """Copies of what is kept to the host (beside the forward) and back (beside the backward) that computation does
        not hide."""
        if not self.setting.execution.offload_activations:
            return (np.zeros(len(self.setting.block_of)),) * 2
        host = self.setting.cluster.device.host
        assert host is not None, "execution_of offloads only where the profile has a host"
        kept = self.per_segment([p.saved_bytes[self.candidate.recompute] for p in self.prices])
        copy_s = kept / host.link_bytes_per_s
        return np.maximum(0.0, copy_s - self.forward_s), np.maximum(0.0, copy_s - self.backward_s)

    @cached_property
    def weight_s(self) -> Array:
        """Part of ``backward_s`` that yields weight gradients, accumulation included."""
        return self.per_segment([p.weight_s for p in self.prices]) + self.accumulate_s

    @cached_property
    def accumulate_s(self) -> Array:
        """Adding a microbatch's gradients to those kept apart."""
        bandwidth = self.setting.cluster.device.memory_bytes_per_s * self.setting.cluster.device.efficiency.pointwise
        execution = self.setting.execution
        return execution.factor("memory_bound") * self.reduced_numel * execution.accumulate_bytes / bandwidth

    @property
    def shards(self) -> int:
        return self.candidate.state_shard if self.candidate.zero_stage else 1

    @cached_property
    def numel(self) -> Array:
        return self.per_segment([p.numel(self.shards) for p in self.prices])

    @cached_property
    def trained_numel(self) -> Array:
        return self.per_segment([p.trained_numel(self.shards) for p in self.prices])

    @cached_property
    def reduced_numel(self) -> Array:
        return self.per_segment([p.reduced_numel(self.shards) for p in self.prices])

    @cached_property
    def owned_numel(self) -> Array:
        """Of ``reduced_numel``, the share that one device updates."""
        if not self.candidate.zero_stage:
            return self.reduced_numel
        experts = self.per_segment([p.expert_numel() for p in self.prices])
        return (self.reduced_numel - experts) / self.shards + experts / self._expert_shards

    @property
    def _expert_shards(self) -> int:
        """Devices that hold the same experts, of those that share state."""
        c = self.candidate
        return max(1, c.state_shard * c.tp // c.ep)

    @property
    def _dp_factor(self) -> float:
        """Calibration of what data-parallel devices tell each other."""
        return self.setting.execution.factor("dp")

    def _over_state(self, price: Callable[[Group, float], float], size: float, block_numel: Sequence[int]) -> Array:
        """A collective over the devices that share state, of each block's parameters: experts over those that hold the
        same ones."""
        c, cluster = self.candidate, self.setting.cluster
        ranks = group(cluster, size=c.state_shard, stride=c.tp)
        own = group(cluster, size=self._expert_shards, stride=c.ep) if c.ep > 1 else ranks
        experts = [p.expert_numel() for p in self.prices]
        return self._dp_factor * self.per_segment(
            [
                price(ranks, size * (n - e)) + (price(own, size * e) if e else 0.0)
                for n, e in zip(block_numel, experts, strict=True)
            ]
        )

    @cached_property
    def _gather_s(self) -> Array:
        """All-gather of each block's parameters over the devices that share state."""
        numel = [p.numel(self.shards) for p in self.prices]
        return self._over_state(communication.all_gather_s, self.setting.precision.gathered_bytes, numel)

    @cached_property
    def _reduce_s(self) -> Array:
        """Reduce-scatter of each block's gradients over the same."""
        numel = [p.reduced_numel(self.shards) for p in self.prices]
        return self._over_state(communication.reduce_scatter_s, self.setting.precision.reduced_bytes, numel)

    @cached_property
    def _replicate_s(self) -> Array:
        """All-reduce of each block's gradient shard over ``dp_replicate``; over all data-parallel devices where no
        state is shared out."""
        c, size = self.candidate, self.setting.precision.reduced_bytes
        numel = [p.reduced_numel(self.shards) for p in self.prices]
        if not c.zero_stage and c.state_shard > 1:
            return self._over_state(communication.all_reduce_s, size, numel)
        ranks = group(self.setting.cluster, size=c.dp_replicate, stride=c.tp * c.state_shard)
        reduced = self.per_segment([communication.all_reduce_s(ranks, size / c.state_shard * n) for n in numel])
        return self._dp_factor * reduced

    @cached_property
    def data_parallel(self) -> tuple[dict[str, Exposed], dict[str, Exposed]]:
        """Exposed data-parallel communication (per microbatch, per step), by term; which is where depends on what
        ``zero_stage`` shares out (see `costmodels.memory`)."""
        gather, reduce, replicate = self._gather_s, self._reduce_s, self._replicate_s
        forward, backward = self.forward_s, self.backward_s
        slowdown, execution = self.setting.cluster.library.compute_slowdown, self.setting.execution

        def gathered(compute_s: Array, transfer: Array) -> Exposed:
            return exposed(transfer, compute_s * execution.overlap_gather, compute_slowdown=slowdown)

        def reduced(compute_s: Array, transfer: Array) -> Exposed:
            return exposed(transfer, compute_s * execution.overlap_gradients, compute_slowdown=slowdown)

        def replica_reduce(busy: Array) -> dict[str, Exposed]:
            """In the last microbatch, behind what backward the other communication (``busy``) leaves free."""
            return {"dp.replica_reduce": reduced(np.maximum(backward - busy, 0.0), replicate)}

        match self.candidate.zero_stage:
            case 0:
                return {}, {"dp.gradient_reduce": reduced(backward, replicate)}
            case 1:
                return {}, {
                    "dp.parameter_gather": gathered(forward, gather),
                    "dp.gradient_reduce": reduced(backward, reduce + replicate),
                }
            case 2:
                return {"dp.gradient_reduce": reduced(backward, reduce)}, {
                    "dp.parameter_gather": gathered(forward, gather),
                    **replica_reduce(reduce),
                }
            case _:
                both = reduced(backward, gather + reduce)
                return {
                    "dp.parameter_gather": gathered(forward, gather),
                    "dp.parameter_regather": both.share(gather),
                    "dp.gradient_reduce": both.share(reduce),
                }, replica_reduce(gather + reduce)

    @cached_property
    def send_s(self) -> Array:
        """Per boundary (index = segment that opens a stage): one activation over the boundary; 0 at both ends."""
        c = self.candidate
        if c.pp == 1:
            return np.zeros(len(self.setting.block_of) + 1)
        link = boundary(self.setting.cluster, stride=c.num_devices // c.pp)
        return np.array([communication.send_recv_s(link, b) for b in self.crossing_bytes])

    @cached_property
    def crossing_bytes(self) -> Array:
        """Per boundary: bytes of the activations that cross it, on one device."""
        inner = [sum(self._value_bytes(value) for value in crossing) for crossing in self.setting.graph.crossings]
        return np.array([0.0, *inner, 0.0])

    def _value_bytes(self, value: Value) -> float:
        whole = prod(value.shape(self.candidate.microbatch_size, self.setting.job.seq_len)) * DTYPE_BYTES[value.dtype]
        along_sequence = any(dim.slope for dim in value.dims) and (
            self.candidate.sequence_parallel or self.setting.execution.scatter_sends
        )
        share = self.candidate.cp if any(dim.slope for dim in value.dims) else 1
        return whole / share / self.candidate.tp if along_sequence else whole / share

    @cached_property
    def optimizer_s(self) -> Array:
        """Optimizer step of each segment on one device."""
        moved = memory.optimizer_step_bytes(
            precision=self.setting.precision, num_states=self.setting.num_states, numel=1.0
        )
        launch = self.setting.cluster.device.launch_overhead_s
        per_element = compute.memory_bound_s(self.setting.cluster.device, moved, "optimizer") - launch
        return self.setting.execution.factor("optimizer") * self.owned_numel * per_element

    @cached_property
    def replicated_s(self) -> Array:
        """Once per step: under sequence parallelism every ``tp`` rank has the gradients of whole parameters (norms) for
        its own tokens; they are summed."""
        ranks = group(self.setting.cluster, size=self.candidate.tp, stride=1)
        size = self.setting.precision.grad_bytes
        reduced = self.per_segment([communication.all_reduce_s(ranks, size * p.replicated_numel) for p in self.prices])
        return self._dp_factor * reduced

    def tied(self) -> Iterator[tuple[int, int, int, bool]]:
        """(segment, next segment, elements on one device, whether trained) of `Setting.tied`."""
        for first, later, relative in self.setting.tied:
            block = self.setting.block_of[later]
            trained = relative in self.setting.trained[block]
            shape = self.prices[block].param_shapes[relative]
            yield first, later, padded_numel(shape, self.shards), trained

    @cached_property
    def tied_s(self) -> float:
        """Once per step: parameters that two stages read sum their gradients between the two."""
        c = self.candidate
        if c.pp == 1 or not self.setting.tied:
            return 0.0
        link = boundary(self.setting.cluster, stride=c.num_devices // c.pp)
        num_bytes = sum(numel for *_, numel, trained in self.tied() if trained) * self.setting.precision.grad_bytes
        return self._dp_factor * communication.send_recv_s(link, num_bytes)

    @cached_property
    def microbatch_s(self) -> Matrix:
        """``t`` of `costmodels.step` for every stage."""
        per_microbatch, _ = self.data_parallel
        total = self.forward_s + self.backward_s + sum(e.expected for e in per_microbatch.values())
        first = sum((e.first for e in per_microbatch.values()), np.zeros_like(total))
        send = self.send_s
        return range_sums(total) + first[:, None] + send[:-1, None] + send[None, :]

    @cached_property
    def once_s(self) -> Matrix:
        """``d`` of `costmodels.step` for every stage."""
        _, per_step = self.data_parallel
        total = self.optimizer_s + self.replicated_s + sum(e.expected for e in per_step.values())
        first = sum((e.first for e in per_step.values()), np.zeros_like(total))
        return range_sums(total) + first[:, None] + self.tied_s

    @cached_property
    def remaining_s(self) -> Matrix:
        """``w = (m - 1) t + d`` of `planner.solvers.inter_op` for every stage."""
        t = self.microbatch_s
        repeats = np.multiply(self.candidate.num_microbatches - 1, t, where=np.isfinite(t), out=np.full_like(t, np.inf))
        return repeats + self.once_s

    @cached_property
    def lower_bound_s(self) -> float:
        """No cut of this candidate is faster: a sum over stages is at least that over segments, a maximum the mean."""
        c = self.candidate
        per_microbatch, per_step = self.data_parallel
        t = float((self.forward_s + self.backward_s + sum(e.expected for e in per_microbatch.values())).sum())
        d = float((self.optimizer_s + self.replicated_s + sum(e.expected for e in per_step.values())).sum())
        return t + ((c.num_microbatches - 1) * t + d) / c.pp

    def stage_seconds(self, a: int, b: int) -> StageSeconds:
        """Named seconds of the stage of segments [a, b): their sums are entries of `microbatch_s` and `once_s`."""
        inside = [self.prices[block] for block in self.setting.block_of[a:b]]
        policy = self.candidate.recompute

        def plain(seconds: float) -> Seconds:
            return Seconds(seconds, seconds, seconds)

        def of(e: Exposed) -> Seconds:
            return Seconds(float(e.expected[a:b].sum() + e.first[a]), e.low_s(a, b), float(e.high[a:b].sum()))

        passes = [p.forward for p in inside] + [p.backward for p in inside]
        shares = self.recomputed[a:b]
        again = [(share, p.again[policy]) for share, p in zip(shares, inside, strict=True)]
        collectives = sum(p.collectives for p in passes) + sum(share * p.collectives for share, p in again)
        hidden = sum(p.hidden_collectives for p in passes) + sum(share * p.hidden_collectives for share, p in again)
        context = sum(p.context for p in passes) + sum(share * p.context for share, p in again)
        experts = sum(p.experts for p in passes) + sum(share * p.experts for share, p in again)
        send = float(self.send_s[a] + self.send_s[b])
        per_microbatch, per_step = self.data_parallel
        return StageSeconds(
            per_microbatch={
                "compute.gemm": plain(sum(p.gemm for p in passes)),
                "compute.attention": plain(sum(p.attention for p in passes)),
                "compute.memory_bound": plain(sum(p.memory_bound for p in passes)),
                "compute.recompute": plain(sum(share * p.compute for share, p in again)),
                "compute.accumulate": plain(float(self.accumulate_s[a:b].sum())),
                "compute.host": plain(sum(p.host for p in passes)),
                "host.offload": plain(sum(float(exposed_s[a:b].sum()) for exposed_s in self.offload_s)),
                "tp.collectives": Seconds(collectives, 0.0, collectives + hidden),
                "cp.attention": Seconds(context, 0.0, context),
                "ep.all_to_all": Seconds(experts, 0.0, experts),
                "pp.send_recv": Seconds(send, 0.0, send),
                **{name: of(e) for name, e in per_microbatch.items()},
            },
            per_step={
                **{name: of(e) for name, e in per_step.items()},
                "tp.gradient_reduce": plain(float(self.replicated_s[a:b].sum())),
                "pp.tied_gradients": plain(self.tied_s),
                "optimizer.step": plain(float(self.optimizer_s[a:b].sum())),
            },
        )

    # --- bytes -----------------------------------------------------------------------------------------------------

    @cached_property
    def _numel_ranges(self) -> tuple[Matrix, Matrix]:
        """Parameters and trained parameters of every stage, none where it is empty (what is infinite there are its
        activations); a tied one counts once where both readers are."""
        numel, trained = (np.triu(range_sums(x), 1) for x in (self.numel, self.trained_numel))
        for first, later, elements, is_trained in self.tied():
            numel[: first + 1, later + 1 :] -= elements
            trained[: first + 1, later + 1 :] -= elements if is_trained else 0
        return numel, trained

    @cached_property
    def memory_parts(self) -> Mapping[str, Matrix]:
        """Bytes of every stage by part, but for activations, which depend on the stage's position."""
        c, precision = self.candidate, self.setting.precision
        numel, trained = self._numel_ranges
        state = memory.state_bytes(
            precision=precision, num_states=self.setting.num_states, zero_stage=c.zero_stage, dp_shard=c.state_shard,
            numel=numel, trained_numel=trained,
            gathered_numel=range_maxima(self.numel) + range_second(self.numel),
        )  # fmt: skip
        per_block = {0: 0, 1: precision.grad_bytes}.get(c.zero_stage, precision.gathered_bytes + precision.grad_bytes)
        crossing = self.crossing_bytes
        transient = [p.transient_bytes + p.rematerialised_bytes[c.recompute] for p in self.prices]
        return {
            "parameters": state.parameters,
            "compute_copy": state.compute_copy,
            "gradients": state.gradients,
            "optimizer": state.optimizer,
            "buffers": np.triu(range_sums(np.asarray(self.setting.graph.resident_bytes, dtype=np.float64)), 1),
            "transient": range_maxima(self.per_segment(transient)),
            "communication_buffers": per_block * range_maxima(self.trained_numel)
            + crossing[:-1, None] + crossing[None, :],
        }  # fmt: skip

    @cached_property
    def activation_bytes(self) -> Matrix:
        """Bytes that every stage keeps per microbatch in flight: what its blocks save, and its output. Infinite where a
        stage would have no module."""
        saved = self.per_segment([p.saved_bytes[self.candidate.recompute] for p in self.prices])
        kept = range_sums(saved) + self.crossing_bytes[None, :]
        return np.where(range_sums(self.setting.named) > 0, kept, np.inf)

    @cached_property
    def peak_bytes(self) -> list[Matrix]:
        """Per pipeline position: peak of every stage."""
        c = self.candidate
        fixed = sum(self.memory_parts.values())
        held = [in_flight(i, c.pp, c.num_microbatches) for i in range(c.pp)]
        by_held = {n: fixed + n * self.activation_bytes for n in set(held)}
        return [by_held[n] for n in held]

    def fits(self, capacity_bytes: float) -> list[Mask]:
        """Per pipeline position: which stages have room, ``fixed + held * activations <= capacity``."""
        c = self.candidate
        with np.errstate(divide="ignore", invalid="ignore"):
            room = (capacity_bytes - sum(self.memory_parts.values())) / self.activation_bytes
        held = [in_flight(i, c.pp, c.num_microbatches) for i in range(c.pp)]
        masks = {n: room >= n for n in set(held)}
        return [masks[n] for n in held]

    @cached_property
    def least_peak_bytes(self) -> float:
        """No cut of this candidate needs less on its fullest device: states and one microbatch, spread evenly."""
        c, tied = self.candidate, list(self.tied())
        state = memory.state_bytes(
            precision=self.setting.precision, num_states=self.setting.num_states, zero_stage=c.zero_stage,
            dp_shard=c.dp_shard, gathered_numel=np.zeros(1),
            numel=np.array([self.numel.sum() - sum(elements for _, _, elements, _ in tied)]),
            trained_numel=np.array([self.trained_numel.sum() - sum(e for _, _, e, trained in tied if trained)]),
        )  # fmt: skip
        saved = self.per_segment([p.saved_bytes[c.recompute] for p in self.prices])
        spread = state.parameters + state.gradients + state.optimizer + saved.sum() + self.crossing_bytes[-1]
        return float(spread[0]) / c.pp

    def stage_memory(self, position: int, a: int, b: int) -> StageMemory:
        parts = {name: int(matrix[a, b]) for name, matrix in self.memory_parts.items()}
        held = in_flight(position, self.candidate.pp, self.candidate.num_microbatches)
        parts["activations"] = int(held * self.activation_bytes[a, b])
        return StageMemory(parts={name: size for name, size in parts.items() if size})
