"""Seconds and numbers of parameters of every segment of one candidate: what stages add up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from costmodels import communication, compute, memory
from costmodels.compute import DTYPE_BYTES
from costmodels.overlap import Array, Exposed
from hardware_profiles.topology import boundary, group
from planner.graph import Value
from planner.layouts.data_parallel import padded_numel
from planner.plan import Candidate
from planner.solvers.data_parallel import expert_shards, exposed_transfers, state_shards, transfers
from planner.solvers.prices import BlockPrice
from planner.solvers.setting import Setting


@dataclass(frozen=True)
class SegmentCosts:
    """Prices of one candidate. Arrays are per segment."""

    setting: Setting
    candidate: Candidate
    prices: Sequence[BlockPrice]
    """Per distinct block."""

    def per_segment(self, of_block: Callable[[BlockPrice], float]) -> Array:
        """Something of every segment's block."""
        return self.setting.per_segment([of_block(price) for price in self.prices])

    # --- passes ----------------------------------------------------------------------------------------------------

    @cached_property
    def recomputed(self) -> Array:
        """Per segment: 1 where ``recompute`` applies. A limited number of blocks per stage are spread evenly."""
        c, blocks = self.candidate, self.setting.repeated
        if c.recomputed_blocks is None:
            return blocks
        share = min(1.0, c.recomputed_blocks * c.pp * c.num_chunks / max(blocks.sum(), 1.0))
        limited: Array = blocks * share
        return limited

    @cached_property
    def forward_s(self) -> Array:
        return self.per_segment(lambda p: p.forward.total)

    @cached_property
    def backward_s(self) -> Array:
        """Backward with recomputation: what gradient communication can hide behind."""
        again = self.per_segment(lambda p: p.again[self.candidate.recompute].total)
        return self.per_segment(lambda p: p.backward.total) + self.recomputed * again + self.accumulate_s

    @cached_property
    def weight_s(self) -> Array:
        """Part of ``backward_s`` that yields weight gradients, accumulation included."""
        return self.per_segment(lambda p: p.weight_s) + self.accumulate_s

    @cached_property
    def accumulate_s(self) -> Array:
        """Adding a microbatch's gradients to those kept apart."""
        bandwidth = self.setting.cluster.device.memory_bytes_per_s * self.setting.cluster.device.efficiency.pointwise
        execution = self.setting.execution
        return execution.factor("memory_bound") * self.reduced_numel * execution.accumulate_bytes / bandwidth

    @cached_property
    def saved_bytes(self) -> Array:
        """What blocks keep from forward to backward where ``recompute`` applies."""
        return self.per_segment(lambda p: p.saved_bytes[self.candidate.recompute])

    @cached_property
    def offload_s(self) -> tuple[Array, Array]:
        """Copies of what is kept to the host (beside the forward) and back (beside the backward) that computation does
        not hide."""
        if not self.setting.execution.offload_activations:
            return (np.zeros(len(self.setting.block_of)),) * 2
        host = self.setting.cluster.device.host
        assert host is not None, "execution_of offloads only where the profile has a host"
        copy_s = self.saved_bytes / host.link_bytes_per_s
        return np.maximum(0.0, copy_s - self.forward_s), np.maximum(0.0, copy_s - self.backward_s)

    @cached_property
    def data_parallel(self) -> tuple[dict[str, Exposed], dict[str, Exposed]]:
        """Exposed data-parallel communication (per microbatch, per step), by term (`planner.solvers.data_parallel`)."""
        found = transfers(self.setting, self.candidate, self.prices)
        return exposed_transfers(self.setting, self.candidate.zero_stage, found, self.forward_s, self.backward_s)

    # --- borders ---------------------------------------------------------------------------------------------------

    @cached_property
    def send_s(self) -> Array:
        """Per boundary (index = segment that opens a stage): one activation over the boundary; 0 at both ends."""
        c = self.candidate
        if c.pp == 1:
            return np.zeros(len(self.setting.block_of) + 1)
        link = boundary(self.setting.cluster, stride=c.num_devices // c.pp)
        sent_s: Array = np.array([communication.send_recv_s(link, b) for b in self.crossing_bytes])
        if c.sequence_parallel or not self.setting.execution.scatter_sends:
            return sent_s
        ranks = group(self.setting.cluster, size=c.tp, stride=1)
        gathered_s: Array = np.array([communication.all_gather_s(ranks, c.tp * b) for b in self.crossing_bytes])
        return sent_s + gathered_s

    @cached_property
    def crossing_bytes(self) -> Array:
        """Per boundary: bytes of the activations that cross it, on one device."""
        inner = [sum(self._value_bytes(value) for value in crossing) for crossing in self.setting.graph.crossings]
        return np.array([0.0, *inner, 0.0])

    def _value_bytes(self, value: Value) -> float:
        c = self.candidate
        whole = prod(value.shape(c.microbatch_size, self.setting.job.seq_len)) * DTYPE_BYTES[value.dtype]
        if not any(dim.slope for dim in value.dims):
            return whole
        shared = c.sequence_parallel or self.setting.execution.scatter_sends
        return whole / c.cp / c.tp if shared else whole / c.cp

    # --- parameters ------------------------------------------------------------------------------------------------

    @property
    def shards(self) -> int:
        return state_shards(self.candidate)

    @cached_property
    def numel(self) -> Array:
        return self.per_segment(lambda p: p.numel(self.shards))

    @cached_property
    def trained_numel(self) -> Array:
        return self.per_segment(lambda p: p.trained_numel(self.shards))

    @cached_property
    def reduced_numel(self) -> Array:
        return self.per_segment(lambda p: p.reduced_numel(self.shards))

    @cached_property
    def owned_numel(self) -> Array:
        """Of ``reduced_numel``, the share that one device updates."""
        if not self.candidate.zero_stage:
            return self.reduced_numel
        experts = self.per_segment(lambda p: p.expert_numel())
        return (self.reduced_numel - experts) / self.shards + experts / expert_shards(self.candidate)

    def tied(self) -> Iterator[tuple[int, int, int, bool]]:
        """(segment, next segment, elements on one device, whether trained) of `Setting.tied`."""
        for first, later, relative in self.setting.tied:
            block = self.setting.block_of[later]
            trained = relative in self.setting.trained[block]
            shape = self.prices[block].param_shapes[relative]
            yield first, later, padded_numel(shape, self.shards), trained

    def held_numel(self, segments: Collection[int]) -> tuple[float, float]:
        """Parameters and trained parameters of these segments together; tied ones count once."""
        inside, held = list(segments), set(segments)
        tied = [(n, trained) for first, later, n, trained in self.tied() if {first, later} <= held]
        numel = float(self.numel[inside].sum()) - sum(n for n, _ in tied)
        trained = float(self.trained_numel[inside].sum()) - sum(n for n, is_trained in tied if is_trained)
        return numel, trained

    # --- once per step ---------------------------------------------------------------------------------------------

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
    def clip_s(self) -> Array:
        """Reading each segment's gradients for their norm; that its sum is a collective of one number costs nothing."""
        setting = self.setting
        if not setting.execution.clip_gradients:
            return np.zeros(len(setting.block_of))
        device = setting.cluster.device
        bandwidth = device.memory_bytes_per_s * device.efficiency.pointwise
        return setting.execution.factor("optimizer") * self.owned_numel * setting.precision.grad_bytes / bandwidth

    @cached_property
    def replicated_s(self) -> Array:
        """Under sequence parallelism every ``tp`` rank has the gradients of whole parameters (norms) for its own
        tokens; they are summed."""
        ranks = group(self.setting.cluster, size=self.candidate.tp, stride=1)
        size = self.setting.precision.grad_bytes
        reduced = self.per_segment(lambda p: communication.all_reduce_s(ranks, size * p.replicated_numel))
        return self.setting.execution.factor("dp") * reduced

    @cached_property
    def tied_s(self) -> float:
        """Parameters that two stages read sum their gradients between the two."""
        c = self.candidate
        if c.pp == 1 or not self.setting.tied:
            return 0.0
        link = boundary(self.setting.cluster, stride=c.num_devices // c.pp)
        num_bytes = sum(numel for *_, numel, trained in self.tied() if trained) * self.setting.precision.grad_bytes
        return self.setting.execution.factor("dp") * communication.send_recv_s(link, num_bytes)
