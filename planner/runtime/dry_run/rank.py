"""One optimizer step of one rank, watched."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils import _pytree as pytree

from costmodels.units import KIB
from planner.capture.fused import FusedKernels
from planner.capture.program import ModelProgram
from planner.capture.sources import ModelSource
from planner.plan import Plan
from planner.runtime.dry_run.collectives import Call
from planner.runtime.dry_run.memory import Peak
from planner.runtime.dry_run.observe import Observer
from planner.runtime.dry_run.world import fake_tensors, fake_world
from planner.runtime.meshes import Meshes, make_meshes
from planner.runtime.parallel import Parallel
from planner.runtime.stage import StageModule
from planner.runtime.train import make_optimizer
from planner.solvers.block_layout.planned import PlacedBlocks
from planner.stages import stage_cuts

LossFn = Callable[..., Tensor]


@dataclass(frozen=True)
class Prepared:
    """What all ranks of a job share, worked out once."""

    source: ModelSource
    plan: Plan
    """With as many microbatches as are run."""
    program: ModelProgram
    placed: PlacedBlocks
    loss_fn: LossFn | None = None


@dataclass(frozen=True)
class RankLog:
    """What one rank did in one step."""

    calls: tuple[Call, ...]
    starts: tuple[int, ...]
    """Per forward pass of its first stage, how many of ``calls`` came before."""
    peak: Peak
    cpu_s: float
    """CPU time, building included."""
    host_bytes: int
    """Most that this process held in memory."""


def run_rank(prepared: Prepared, rank: int) -> RankLog:
    """Build the model for one rank as a real one would, on fake tensors, and run one step with its optimizer.

    The optimizer has states already, as in every step but the first. Only one rank can be run in a process.
    """
    began = time.process_time()
    plan, source = prepared.plan, prepared.source
    job, c = plan.inputs.job, plan.candidate
    with fake_world(rank, c.num_devices), fake_tensors(), FusedKernels():
        with unset_fake_temporarily():
            meshes = make_meshes(c, rank=rank, device_type="cpu")
        parallel = Parallel(
            plan=plan, meshes=meshes, device=torch.device("cpu"), loss_fn=prepared.loss_fn, compile=False
        )
        parallel.build(source.module, source.inputs, program=prepared.program, placed=prepared.placed)
        engine = parallel.engine
        assert engine is not None
        stages = {number: stage for number, stage in engine.stages.items() if isinstance(stage, StageModule)}
        names = module_names(source.module, stages, prepared)
        _name_sharded(stages, names)
        optimizer = _with_states(source.module, job.optimizer)
        observer = Observer(names, group_axes(meshes), next(iter(stages.values())))
        batch = _zeros(source.inputs(c.microbatch_size * c.num_microbatches, job.seq_len))
        _hold_what_stays(observer, source.module, stages, optimizer)
        observer.memory.hold(pytree.tree_leaves(batch), "inputs", "")
        with observer.watching():
            engine.step(batch, local=True)
            for fqn, param in _named(source.module, stages):
                if param.grad is not None:
                    observer.memory.hold([param.grad], "gradients", fqn)
            optimizer.step()
            optimizer.zero_grad()
    return RankLog(
        calls=tuple(observer.collectives.calls),
        starts=tuple(observer.starts),
        peak=observer.memory.peak(),
        cpu_s=time.process_time() - began,
        host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB,  # of which Linux counts it
    )


LEARNING_RATE = 1e-4
"""Any: there are no numbers."""


def module_names(model: nn.Module, stages: Mapping[int, StageModule], prepared: Prepared) -> dict[nn.Module, str]:
    """FQNs of a model's modules; units that are none of them bear the name of the first module that runs in them."""
    names = {module: fqn for fqn, module in model.named_modules() if fqn}
    graph = prepared.program.graph
    cuts = stage_cuts(graph, prepared.plan.stages)
    for number, stage in stages.items():
        segments = graph.segments[cuts[number] : cuts[number + 1]]
        # Before its own units a stage may have some that repeat what earlier ones made of the batch.
        for unit, segment in zip(list(stage.units)[-len(segments) :], segments, strict=True):
            names.setdefault(unit, segment.prefix or next(iter(segment.modules), ""))
    return names


def group_axes(meshes: Meshes) -> dict[str, str]:
    """Name of a process group -> axis, as `planner.solvers.traffic` calls it."""
    axes = {str(group.group_name): AXES.get(axis, axis) for axis, group in meshes.groups.items()}
    assert dist.group.WORLD is not None
    return axes | {str(dist.group.WORLD.group_name): "world"}


AXES = {"fsdp": "dp_shard"}


def _name_sharded(stages: Mapping[int, StageModule], names: Mapping[nn.Module, str]) -> None:
    """`fully_shard` knows its units by names under the stage; in what is seen of them they bear the model's."""
    for stage in stages.values():
        if isinstance(stage, FSDPModule):
            root = fully_shard.state(stage)  # type: ignore[attr-defined]
            root._lazy_init()
            for state in root._state_ctx.all_states:
                for group in state._fsdp_param_groups:
                    group._module_fqn = names.get(group.modules[0], "")


def _named(model: nn.Module, stages: Mapping[int, StageModule]) -> list[tuple[str, nn.Parameter]]:
    """Every parameter of this rank once, by its first name."""
    found = {id(param): (fqn, param) for fqn, param in reversed(list(model.named_parameters(remove_duplicate=False)))}
    return [
        found.get(id(param), ("", param))
        for param in {id(p): p for stage in stages.values() for p in stage.parameters()}.values()
    ]


def _hold_what_stays(
    observer: Observer, model: nn.Module, stages: Mapping[int, StageModule], optimizer: torch.optim.Optimizer
) -> None:
    for fqn, param in _named(model, stages):
        observer.memory.hold([param], "parameters", fqn)
        states = [value for value in optimizer.state.get(param, {}).values() if isinstance(value, Tensor)]
        observer.memory.hold(states, "optimizer", fqn)
    for fqn, buffer in model.named_buffers():
        if not buffer.is_meta:
            observer.memory.hold([buffer], "buffers", fqn)


def _with_states(model: nn.Module, name: str) -> torch.optim.Optimizer:
    optimizer = make_optimizer(model, name, lr=LEARNING_RATE)
    for param in model.parameters():
        param.grad = torch.zeros_like(param) if param.requires_grad else None
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _zeros(like: Any) -> Any:
    def zeros(tensor: Tensor) -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    return pytree.tree_map_only(Tensor, zeros, like)
