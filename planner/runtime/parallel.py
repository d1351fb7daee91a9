"""A model that is laid out over ranks, and how it came to be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils import _pytree as pytree

from costmodels.memory import PRECISIONS
from hardware_profiles.cluster import Cluster
from hardware_profiles.load import load_cluster
from planner.capture.program import ModelProgram, capture_program
from planner.capture.sources import example_function
from planner.errors import MeshwrightError, UsageError
from planner.plan import Plan
from planner.runtime.build import Builder, Forward
from planner.runtime.data_parallel import compute_dtype, param_dtype, shard_units
from planner.runtime.gradients import clip_grad_norm
from planner.runtime.initialise import Weights
from planner.runtime.meshes import Meshes
from planner.runtime.pipeline import Pipeline, StageRunner, make_ties
from planner.runtime.placement import Placement
from planner.runtime.recompute import recomputed
from planner.runtime.stage import StageModule
from planner.runtime.training import Engine, tensors_of
from planner.solvers.block_layout.planned import PlacedBlocks, placed_blocks
from planner.solvers.setting import Setting


class ParallelModel(nn.Module):
    """What a model can do besides, once it is laid out."""

    _parallel: Parallel

    @property
    def plan(self) -> Plan:
        return self._parallel.plan

    @property
    def meshes(self) -> Meshes:
        return self._parallel.meshes

    def train_step(self, batch: Any, local: bool = False) -> Tensor:
        """Gradients of the mean loss of a batch, ready for ``optimizer.step()``; that loss, on every rank.

        Args:
            batch: what the model's forward takes (and, with ``loss_fn``, the target last), as a tuple or a dict of
                tensors with samples along dim 0: all samples on every rank, or this rank's share where ``local``.
        Raises:
            UsageError: not the number of samples that the plan is for, or samples of another shape.
        """
        return self._parallel.engine.step(batch, local=local)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of one microbatch of this rank.

        Raises:
            UsageError: the model is cut into pipeline stages, which only ``train_step`` runs; or another number of
                samples than a microbatch's.
        """
        batch = kwargs or args
        engine = self._parallel.engine
        if engine.pipeline is not None:
            raise UsageError("a model in pipeline stages runs whole steps only: call train_step.")
        (stage,) = engine.stages.values()
        tensors = tensors_of(batch)
        size = self.plan.candidate.microbatch_size
        if any(tensor.dim() == 0 or tensor.shape[0] != size for tensor in tensors):
            raise UsageError(f"forward runs one microbatch, {size} samples along dim 0 of every tensor.")
        return stage(**{f"b{i}": tensor.to(engine.device) for i, tensor in enumerate(tensors)})

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """`torch.nn.utils.clip_grad_norm_` over all ranks, with the 2-norm; every rank must call it."""
        engine = self._parallel.engine
        return clip_grad_norm(engine.params, max_norm, self.meshes, engine.ties)


@dataclass
class Parallel:
    """How one model is laid out."""

    plan: Plan
    meshes: Meshes
    device: torch.device
    loss_fn: Callable[..., Tensor] | None
    compile: bool
    cluster: Cluster | None = None
    """For layouts that the plan leaves open; default the plan's."""
    engine: Engine = field(init=False)
    placement: Placement = field(init=False)

    def build(
        self,
        model: nn.Module,
        example_inputs: Any,
        weights: Weights | None = None,
        program: ModelProgram | None = None,
        placed: PlacedBlocks | None = None,
    ) -> None:
        """Trace the model, cut it into stages and give this rank its parts.

        Args:
            weights: default the model's own.
            program, placed: where they are known already.
        """
        plan, c, meshes = self.plan, self.plan.candidate, self.meshes
        precision = PRECISIONS[plan.inputs.job.precision]
        dtype, seq_len = compute_dtype(precision), plan.inputs.job.seq_len
        inputs, _ = example_function(example_inputs, where="example_inputs")
        program = program or capture_program(
            model, inputs, batch=c.microbatch_size, seq_len=seq_len, dtype=dtype, loss_fn=self.loss_fn,
            name=type(model).__name__,
        )  # fmt: skip
        self.placement = placement = Placement.of(model, plan, program, meshes)
        placement.place(weights or Weights(model, device=self.device, dtype=param_dtype(precision)))
        setting = Setting(program.graph, self.cluster or _cluster(plan), plan.inputs.job)
        details = dict(enumerate((placed or placed_blocks(setting, plan)).blocks))
        axes = meshes.axis_groups(c)
        builder = Builder(model, plan, program, details, axes, meshes, self.device, dtype)
        stages = builder.stages(self._wrap(program, placement))
        held = placement.held(stages)
        for stage in stages.values():
            shard_units(stage, stage.groups, meshes, zero_stage=c.zero_stage, precision=precision)
        placement.relink(held)
        copies = {
            fqn: list({id(p): p for p in (module.get_parameter(name) for module, name in by_stage.values())}.values())
            for fqn, by_stage in held.items()
        }
        ties = make_ties(
            placement.shared, copies, plan.stage_ranks, meshes,
            sharded=all(isinstance(stage, FSDPModule) for stage in stages.values()),
        )  # fmt: skip
        example = [t for t in pytree.tree_leaves(inputs(1, seq_len)) if isinstance(t, Tensor)]
        self.engine = Engine(
            candidate=c, meshes=meshes, device=self.device, stages=stages, ties=ties,
            pipeline=self._pipeline(stages) if c.pp > 1 else None,
            shapes=tuple((t.shape[1:], t.dtype) for t in example),
        )  # fmt: skip
        # Ranks that share a sample draw the same numbers, others have their own.
        shares = meshes.coordinates["pp"] * meshes.data_parallel + meshes.data_coordinate
        torch.manual_seed((torch.initial_seed() + shares) % 2**63)

    def _wrap(self, program: ModelProgram, placement: Placement) -> Callable[[int, Forward], Forward]:
        c = self.plan.candidate
        again = set[int]()
        for a, b in zip(placement.cuts, placement.cuts[1:], strict=False):
            blocks = [i for i in range(a, b) if program.segments[i].segment.prefix]
            again.update(blocks[: c.recomputed_blocks])

        def wrap(i: int, forward: Forward) -> Forward:
            run = torch.compile(forward) if self.compile and program.segments[i].segment.prefix else forward
            return recomputed(run, c.recompute) if i in again else run

        return wrap

    def _pipeline(self, stages: dict[int, StageModule]) -> Pipeline:
        c = self.plan.candidate
        loss = torch.empty((), device="meta", requires_grad=True)
        runners = [
            StageRunner(
                stage, number, len(self.plan.stages), meshes=self.meshes, device=self.device,
                inputs=tuple(stage.arriving.values()),
                outputs=(loss,) if stage.last else tuple(stage.leaving.values()),
                zero_stage=c.zero_stage, recomputes=c.recompute != "none",
            )
            for number, stage in stages.items()
        ]  # fmt: skip
        return Pipeline(runners, self.plan.order, seed=c.cp / c.num_microbatches)


def _cluster(plan: Plan) -> Cluster:
    """The plan's, or any: it prices layouts that the plan leaves open."""
    try:
        cluster = load_cluster(
            plan.inputs.hardware, None if ":" in plan.inputs.hardware else plan.candidate.num_devices
        )
    except MeshwrightError:
        return load_cluster(f"h100-sxm:1x{plan.candidate.num_devices}")
    if plan.inputs.hardware_sha256 not in (None, cluster.fingerprint):
        warnings.warn(
            f"the plan was made for {plan.inputs.hardware} as {plan.inputs.hardware_sha256}; that profile is "
            f"{cluster.fingerprint} here. It runs, but what it predicts is of the other: plan again.",
            stacklevel=2,
        )
    return cluster
