"""One optimizer step's forward and backward passes on this rank."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from planner.errors import UsageError
from planner.plan import Candidate
from planner.runtime.data_parallel import before_backward, is_expert, reduce_scalars
from planner.runtime.meshes import Meshes
from planner.runtime.pipeline import Pipeline, Tie, add_tied_gradients


@dataclass
class Engine:
    """This rank's stages, ready to train."""

    candidate: Candidate
    meshes: Meshes
    device: torch.device
    stages: Mapping[int, nn.Module]
    pipeline: Pipeline | None = None
    """Of several stages; a single one is run microbatch by microbatch."""
    ties: Sequence[Tie] = ()
    shapes: tuple[tuple[torch.Size, torch.dtype], ...] = field(default=())
    """Of one sample of every tensor of a batch, from the first step on."""

    @property
    def params(self) -> list[nn.Parameter]:
        """Every parameter of this rank once."""
        return list({id(p): p for stage in self.stages.values() for p in stage.parameters()}.values())

    def step(self, batch: Any, *, local: bool) -> Tensor:
        """Gradients of the mean loss of all samples, added to what is there, and that loss.

        Args:
            batch: tuple or dict of tensors, samples along dim 0; of all ranks, or of this rank's share where ``local``.
        Raises:
            UsageError: another number of samples than the plan's, or samples of other shapes than in the first step.
        """
        microbatches = self._microbatches(self._share(tensors_of(batch), local=local))
        earlier = {param: param.grad for param in self.params if param.grad is not None}
        for param in earlier:
            param.grad = None
        with warnings.catch_warnings():
            # It is for code that writes into what a module returned, which no program of ours does.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            loss = self._passes(microbatches)
        self._finish()
        with torch.no_grad():
            for param, grad in earlier.items():
                param.grad = grad if param.grad is None else param.grad.add_(grad)
        return self._mean(loss)

    @property
    def _seed(self) -> float:
        """What the backward pass of a microbatch's mean loss begins with.

        Gradients are averaged over ``dp_replicate * dp_shard * cp`` devices, of which ``cp`` share a sample's loss.
        """
        return self.candidate.cp / self.candidate.num_microbatches

    def _passes(self, microbatches: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """The mean loss of this rank's samples where the last stage is, else zero."""
        seed = self._seed
        if self.pipeline is not None:
            losses = self.pipeline.step(microbatches)
        else:
            (stage,) = self.stages.values()
            losses = []
            for i, microbatch in enumerate(microbatches):
                before_backward(stage, zero_stage=self.candidate.zero_stage, last=i == len(microbatches) - 1)
                loss = stage(**microbatch) * seed
                loss.backward()
                losses.append(loss.detach())
        if not losses:
            return torch.zeros((), device=self.device)
        return torch.stack([loss.float() for loss in losses]).sum() / self.candidate.cp

    @torch.no_grad()
    def _finish(self) -> None:
        """What backward passes leave to be done once per step."""
        c = self.candidate
        for stage in self.stages.values():
            reduce_scalars(stage, self.meshes)
        add_tied_gradients(self.ties)
        # Experts were averaged over `dp_replicate * expert_shard` devices: all that hold the same ones.
        if c.ep > 1 and c.tp != c.ep:
            for param in self.params:
                if is_expert(param) and param.grad is not None:
                    param.grad.mul_(c.tp / c.ep)

    @torch.no_grad()
    def _mean(self, loss: Tensor) -> Tensor:
        """Over all samples, on every rank; ``loss`` is whole on every rank of ``cp`` and ``tp`` of the last stage."""
        if self.meshes.world_size > 1:
            loss = loss / self.meshes.spmd.size()
            dist.all_reduce(loss)
        return loss

    def _share(self, tensors: list[Tensor], *, local: bool) -> list[Tensor]:
        """This rank's samples, on its device."""
        c = self.candidate
        own = c.microbatch_size * c.num_microbatches
        expected = own if local else own * c.data_parallel
        for i, tensor in enumerate(tensors):
            if tensor.dim() == 0 or tensor.shape[0] != expected:
                found = tuple(tensor.shape)
                raise UsageError(
                    f"tensor {i} of the batch has shape {found}: dim 0 must be the {expected} samples of "
                    + (f"this rank (microbatch_size {c.microbatch_size} * num_microbatches {c.num_microbatches})"
                       if local else
                       f"the global batch ({own} per rank * {c.data_parallel} data-parallel ranks); "
                       f"local=True where the loader has taken this rank's share")
                    + "."
                )  # fmt: skip
        shapes = tuple((tensor.shape[1:], tensor.dtype) for tensor in tensors)
        if self.shapes and shapes != self.shapes:
            raise UsageError(
                f"samples of shapes {_listed(shapes)}: the step was built for {_listed(self.shapes)}. A plan is for "
                "one shape of batch: pad, or plan again."
            )
        self.shapes = shapes
        start = 0 if local else self.meshes.data_coordinate * own
        return [tensor.narrow(0, start, own).to(self.device, non_blocking=True) for tensor in tensors]

    def _microbatches(self, tensors: list[Tensor]) -> list[dict[str, Tensor]]:
        size = self.candidate.microbatch_size
        return [
            {f"b{i}": tensor.narrow(0, at * size, size) for i, tensor in enumerate(tensors)}
            for at in range(self.candidate.num_microbatches)
        ]


def _listed(shapes: tuple[tuple[torch.Size, torch.dtype], ...]) -> str:
    return ", ".join(f"{list(shape)} {str(dtype).removeprefix('torch.')}" for shape, dtype in shapes)


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors of a batch in the order in which a program numbers them.

    Raises:
        UsageError: not a tuple, list or dict, or without tensors.
    """
    if isinstance(batch, tuple | list | dict):
        tensors = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
        if tensors:
            return tensors
    raise UsageError(
        f"train_step was given {type(batch).__name__}: it takes what the model's forward takes (and, with loss_fn, the "
        "target last) as a tuple, or as a dict of keyword arguments, of tensors."
    )
