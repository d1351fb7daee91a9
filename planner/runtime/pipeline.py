"""Pipeline parallelism by ``torch.distributed.pipelining``: the plan's order of actions, executed as it stands.

Torch's own schedules are classes that make such orders; `costmodels.schedules` makes the same ones, and a plan may
bring its own, so all of them go one way: through the runtime that torch's multi-stage schedules and its CSV files use,
which adds sends and receives. What it does about ``fully_shard`` by itself (all of a stage gathered at once, gradients
reduced once) is not used: a stage is hidden in a plain module, and gathers and reduces as its plan says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining._utils import InferenceMode
from torch.distributed.pipelining.schedules import _Action, _PipelineScheduleRuntime
from torch.distributed.tensor import DTensor

from costmodels.schedules import Entry, Schedule
from costmodels.schedules.actions import parts
from planner.runtime.data_parallel import before_backward, hold_gradients, reduce_gradients
from planner.runtime.meshes import Meshes

Tensors = tuple[torch.Tensor, ...]


class _Holder(nn.Module):
    """Hides from torch's runtime that the stage is a `fully_shard` module."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, *crossing: torch.Tensor, **batch: torch.Tensor) -> torch.Tensor | Tensors:
        result = self.stage(*crossing, **batch)
        if isinstance(result, tuple):
            return tuple(value.contiguous() for value in result)
        return result


class StageRunner(PipelineStage):
    """One stage as torch's runtime drives it, with static shapes: nothing is asked of other ranks beforehand, and what
    is received has memory only from its receipt on."""

    def __init__(
        self,
        stage: nn.Module,
        index: int,
        num_stages: int,
        *,
        meshes: Meshes,
        device: torch.device,
        inputs: Tensors,
        outputs: Tensors,
        zero_stage: int,
        recomputes: bool = False,
    ) -> None:
        """
        Args:
            inputs, outputs: empty tensors like what arrives and leaves.
            recomputes: some of the stage's activations are computed again in the backward pass.
        """
        super().__init__(
            _Holder(stage), index, num_stages, device, input_args=inputs, output_args=outputs, group=meshes.groups["pp"]
        )
        self.stage, self.zero_stage, self.recomputes = stage, zero_stage, recomputes
        self._backwards = 0

    def prepare(self, num_microbatches: int) -> None:
        """What torch finds out in the first step by sending shapes around."""
        self._inference_mode = InferenceMode.STATIC
        self.has_backward = True
        device, self.device = self.device, torch.device("meta")
        self._prepare_forward_infra(num_microbatches, None, None, has_backward=True)
        self._prepare_backward_infra(num_microbatches)
        self.device = device

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        self._allocate(self.args_recv_info[fwd_chunk_id])
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        self._allocate(self.grad_recv_info[bwd_chunk_id])
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def _allocate(self, infos: Sequence[Any]) -> None:
        for info in infos:
            if info.tensor_meta is not None:
                meta = info.tensor_meta
                info.buffer = torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype, device=self.device)

    def _retrieve_recv_activations(self, fwd_chunk_id: int) -> Any:
        received = super()._retrieve_recv_activations(fwd_chunk_id)
        for info in self.args_recv_info[fwd_chunk_id]:
            info.buffer = None
        return received

    def _retrieve_recv_grads(self, bwd_chunk_id: int) -> Any:
        received = super()._retrieve_recv_grads(bwd_chunk_id)
        for info in self.grad_recv_info[bwd_chunk_id]:
            info.buffer = None
        return received

    def clear_runtime_states(self) -> None:
        super().clear_runtime_states()
        self._backwards = 0

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        """A stage that computes activations again does its whole backward pass where the first half stands: in halves
        it would compute them once for every product."""
        self._backwards += 1
        if self.recomputes:
            full_backward, last_backward = True, self._backwards == self.chunks
        super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        if not self.recomputes:
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward)

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        """Of one microbatch, whole or a half; gradients of weights are complete after the second."""
        if backward_type == "full":
            before_backward(self.stage, zero_stage=self.zero_stage, last=last_backward)
            return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        hold_gradients(self.stage)
        result = super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        if backward_type == "weight":
            before_backward(self.stage, zero_stage=self.zero_stage, last=last_backward)
            reduce_gradients(self.stage)
        return result

    def perform_reduce_grad(self, grad_scale_factor: int) -> None:
        """The last backward pass has done it."""


def splits_backward(order: Schedule) -> bool:
    """Whether gradients of inputs and of weights are computed apart."""
    return any(action.kind in "IW" for row in order.orders for entry in row for action in parts(entry))


class _Runtime(_PipelineScheduleRuntime):
    """Losses by microbatch: torch's are in the order in which they were computed, which need not be the same."""

    def __init__(self, runners: Sequence[StageRunner], num_microbatches: int, seed: float) -> None:
        super().__init__(list(runners), num_microbatches, loss_fn=lambda loss, _: loss * seed, scale_grads=False)
        self.by_microbatch: dict[int, torch.Tensor] = {}

    def _maybe_compute_loss(
        self, stage: Any, output: Any, target_mbs: Any, mb_index: int, loss_kwargs: Any = None
    ) -> None:
        if stage.is_last:
            self.by_microbatch[mb_index] = self._compute_loss(output, None)

    def _maybe_get_loss(self, stage: Any, mb_index: int) -> torch.Tensor | None:
        return self.by_microbatch[mb_index] if stage.is_last else None

    def _update_losses(self, stages: Any, losses: list[torch.Tensor] | None) -> None:
        """`Pipeline.step` reads them."""


class Pipeline:
    """This rank's stages under the plan's order."""

    def __init__(self, runners: Sequence[StageRunner], order: Schedule, *, seed: float) -> None:
        self.num_microbatches = order.num_microbatches
        self._runtime = _Runtime(runners, self.num_microbatches, seed)
        actions = {rank: [_Action.from_str(_text(entry)) for entry in row] for rank, row in enumerate(order.orders)}
        self._runtime._prepare_schedule_with_comms(actions)  # type: ignore[arg-type]
        for runner in runners:
            runner.prepare(self.num_microbatches)
        self._runtime._stages_forward_initialized = self._runtime._stages_backward_initialized = True
        self._runners = runners

    def step(self, microbatches: Sequence[Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
        """Forward and backward passes of all microbatches; the losses times the seed where the last stage is here.

        Args:
            microbatches: what every stage's forward gets by name.
        """
        for runner in self._runners:
            runner.clear_runtime_states()
        none = [()] * self.num_microbatches
        self._runtime._step_microbatches(list(none), [dict(m) for m in microbatches], return_outputs=False)
        losses = [loss.detach() for _, loss in sorted(self._runtime.by_microbatch.items())]
        self._runtime.by_microbatch.clear()
        return losses


def _text(entry: Entry) -> str:
    """As torch's CSV files write it."""
    texts = [f"{action.stage}{action.kind}{action.microbatch}" for action in parts(entry)]
    return texts[0] if len(texts) == 1 else f"({';'.join(texts)})OVERLAP_F_B"


@dataclass(frozen=True)
class Tie:
    """A parameter that several stages hold a copy of; the copies on this rank, and whom else to add up with."""

    copies: tuple[nn.Parameter, ...]
    num_copies: int
    """On all ranks."""
    group: dist.ProcessGroup | None


def make_ties(
    shared: Mapping[str, Sequence[int]],
    copies: Mapping[str, Sequence[nn.Parameter]],
    stage_ranks: Sequence[int],
    meshes: Meshes,
    *,
    sharded: bool,
) -> list[Tie]:
    """Every rank of a pipeline must call it with the same ``shared``.

    Args:
        shared: FQN -> stages that hold a copy.
        copies: FQN -> the copies on this rank.
        stage_ranks: per stage its rank of ``pp``.
        sharded: `fully_shard` gave every stage a copy; without, stages of one rank share theirs.
    """
    ties = []
    for fqn, stages in sorted(shared.items()):
        ranks = sorted({stage_ranks[stage] for stage in stages})
        here, group = meshes.coordinates["pp"] in ranks, None
        if len(ranks) > 1:
            # A rank without a copy makes one of its own: torch names groups by how many a rank has made, and ranks that
            # have made fewer wait forever in the next one.
            pipeline = dist.get_process_group_ranks(meshes.groups["pp"])
            members = [pipeline[rank] for rank in ranks] if here else [meshes.rank]
            group = dist.new_group(members, use_local_synchronization=True, group_desc="tied")
        if not here:
            continue
        ties.append(Tie(copies=tuple(copies[fqn]), num_copies=len(stages if sharded else ranks), group=group))
    return ties


@torch.no_grad()
def add_tied_gradients(ties: Sequence[Tie]) -> None:
    """Every copy gets the sum of all copies' gradients."""
    for tie in ties:
        if not tie.copies[0].requires_grad:
            continue
        grads = [_gradient(copy) for copy in tie.copies]
        total = grads[0]
        for grad in grads[1:]:
            total += grad
        if tie.group is not None:
            dist.all_reduce(total, group=tie.group)
        for grad in grads[1:]:
            grad.copy_(total)


def _gradient(param: nn.Parameter) -> torch.Tensor:
    """This rank's part, zeros where the stage has not used its copy."""
    if param.grad is None:
        param.grad = torch.zeros_like(param)
    grad = param.grad
    return grad.to_local() if isinstance(grad, DTensor) else grad
