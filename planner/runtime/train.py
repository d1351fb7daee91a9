"""Training a plan's model for some steps, with the clock running."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from costmodels.memory import PRECISIONS
from costmodels.units import KIB
from planner.capture.program import capture_program
from planner.capture.sources import ModelSource, load_model
from planner.errors import ModelSourceError, UnknownNameError, UsageError
from planner.graph import ModelGraph
from planner.plan import Plan
from planner.run_result import Step
from planner.runtime.checkpoint import load
from planner.runtime.checks import check_world
from planner.runtime.data import TokenFile, synthetic
from planner.runtime.data_parallel import compute_dtype
from planner.runtime.integers import integer_uses
from planner.runtime.parallelize import parallelize
from planner.runtime.tracing import profile


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a plan does not say."""

    steps: int
    model: str | None = None
    """As `planner.capture.sources.load_model` takes it; default the plan's."""
    data: Path | None = None
    """File of tokens; made up samples without, the same in every step, so that the loss falls."""
    lr: float = 1e-3
    max_norm: float = 1.0
    seed: int = 0
    compile: bool = False
    trace: Path | None = None
    """Folder for the profile of the last step."""
    resume: Path | None = None
    """Checkpoint to begin from."""
    checkpoint: Path | None = None
    """Checkpoint to leave."""


@dataclass(frozen=True)
class Trainer:
    """A model ready to train."""

    plan: Plan
    settings: Settings
    graph: ModelGraph
    model: Any
    """`planner.runtime.parallel.ParallelModel`."""
    optimizer: torch.optim.Optimizer
    batch: Callable[[int], Any]
    """Step number from 0 -> this rank's samples."""
    device: torch.device
    before_bytes: int
    """Of the process, before it held anything of the model."""

    def step(self, number: int, *, profiled: bool = False) -> Step:
        """Take one step, from 1; every rank must.

        Args:
            profiled: save it as a trace.
        """
        batch = self.batch(number - 1)
        self._wait_for_all()
        with profile(self.settings.trace if profiled else None, self.device):
            started = time.perf_counter()
            loss = self.model.train_step(batch, local=True)
            norm = self.model.clip_grad_norm_(self.settings.max_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - started
        slowest = torch.tensor([seconds, float(self._peak_bytes())], dtype=torch.float64, device=self.device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        seconds, peak_bytes = slowest.tolist()
        return Step(
            number=number, loss=loss.item(), grad_norm=norm.item(), seconds=seconds, peak_bytes=int(peak_bytes),
            profiled=profiled,
        )  # fmt: skip

    def _wait_for_all(self) -> None:
        """A step's time begins when all ranks do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        dist.barrier()

    def _peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _process_peak_bytes() - self.before_bytes


def make_trainer(plan: Plan, settings: Settings) -> Trainer:
    """Build, lay out and feed the plan's model; every rank must call it. The process group is made where there is none.

    Raises:
        UsageError: another number of processes than the plan's devices, or the model has to be named.
        DataFileError, ModelSourceError, TraceError, CheckpointError: as their makers say.
    """
    check_world(plan, int(os.environ.get("WORLD_SIZE", "1")))
    c, job, precision = plan.candidate, plan.inputs.job, PRECISIONS[plan.inputs.job.precision]
    dtype = compute_dtype(precision)
    source = _source(plan, settings.model, dtype)
    program = capture_program(
        source.module, source.inputs, batch=c.microbatch_size, seq_len=job.seq_len, dtype=dtype, name=source.name
    )
    uses = integer_uses(program)
    before_bytes = _process_peak_bytes()
    tokens = None
    if settings.data is not None:
        tokens = TokenFile(settings.data, source.inputs, uses, seq_len=job.seq_len, seed=settings.seed)
    torch.manual_seed(settings.seed)
    model: Any = parallelize(source.module, plan, example_inputs=source.inputs, compile=settings.compile)
    share = c.microbatch_size * c.num_microbatches
    first = model.meshes.data_coordinate * share
    samples = range(first, first + share)
    if tokens is None:
        made = synthetic(source.inputs, uses, seq_len=job.seq_len, samples=samples, seed=settings.seed)

    def batch(step: int) -> Any:
        return made if tokens is None else tokens.batch(step, samples, global_batch=job.global_batch)

    optimizer = make_optimizer(model, job.optimizer, settings.lr)
    if settings.resume is not None:
        load(model, optimizer, settings.resume)
    return Trainer(
        plan=plan, settings=settings, graph=program.graph, model=model, optimizer=optimizer, batch=batch,
        device=torch.device(model.meshes.device_type), before_bytes=before_bytes,
    )  # fmt: skip


def _source(plan: Plan, named: str | None, dtype: torch.dtype) -> ModelSource:
    name = plan.inputs.model if named is None else named
    try:
        return load_model(name, dtype=dtype)
    except (UnknownNameError, ModelSourceError) as error:
        if named is not None or error.__cause__ is not None:
            raise
        raise UsageError(
            f"the plan is for {name}, which is neither built in nor a file here: say where it comes from, "
            "--model path/to/file.py:factory or --model hf:path/to/config.json."
        ) from None


def make_optimizer(model: nn.Module, name: str, lr: float) -> torch.optim.Optimizer:
    """torch's fused optimizer over this rank's parameters; a group for each mesh that parameters lie on, for kernels
    over many tensors take those of one mesh."""
    groups = defaultdict[Any, list[nn.Parameter]](list)
    for param in model.parameters():
        if param.requires_grad:
            groups[param.device_mesh if isinstance(param, DTensor) else None].append(param)
    params = [{"params": held} for held in groups.values()]
    match name:
        case "adamw":
            return torch.optim.AdamW(params, lr=lr, fused=True)
        case "adam":
            return torch.optim.Adam(params, lr=lr, fused=True)
        case _:
            return torch.optim.SGD(params, lr=lr, momentum=0.9 if name == "sgd-momentum" else 0.0, fused=True)


def _process_peak_bytes() -> int:
    """The most memory that the process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIB
