"""A plan executed at its full size in one process, without devices: every distinct rank runs one whole step on fake
tensors in a fake process group, and what it communicates and holds is compared with what the plan predicts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from costmodels.memory import PRECISIONS
from hardware_profiles.load import load_cluster
from planner.capture.program import capture_program
from planner.capture.sources import load_model
from planner.dry_run_result import DryRun
from planner.errors import UsageError
from planner.execution import TORCH_EAGER
from planner.layouts.model import param_layouts
from planner.layouts.pins import matches
from planner.plan import Plan
from planner.runtime.checks import check_plan
from planner.runtime.dry_run.compare import compare
from planner.runtime.dry_run.forked import in_children
from planner.runtime.dry_run.match import Mismatch, mismatches, trace_ranks
from planner.runtime.dry_run.rank import Prepared, run_rank
from planner.runtime.dry_run.steps import shortened
from planner.runtime.dry_run.symmetry import Representative, representatives
from planner.solvers.block_layout.planned import placed_blocks, plan_layouts
from planner.solvers.plan_price import predict_plan
from planner.solvers.setting import Setting
from planner.solvers.traffic import segment_traffic

MAX_DIFFERENCE = 0.05
"""Relative difference that passes where nobody says otherwise."""


def dry_run(
    plan: Plan,
    model: str | nn.Module | None = None,
    *,
    rank: int | None = None,
    max_difference: float = MAX_DIFFERENCE,
    example_inputs: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    at_once: int = 2,
    progress: Callable[[str], object] = id,
) -> DryRun:
    """Execute a plan without devices and compare it with its prediction.

    Args:
        model: name or module as for `planner.make_plan`; default the name in the plan. It is not changed.
        rank: the only rank to run; default one of each kind.
        max_difference: relative, of the peak and of every axis's and kind's collectives.
        example_inputs: with a module, what its forward takes.
        at_once: ranks that are run at the same time, each in a process of its own.
        progress: told what is under way.
    Raises:
        UsageError: there is no such rank, or the model is not the plan's.
    """
    c = plan.candidate
    if rank is not None and not 0 <= rank < c.num_devices:
        raise UsageError(f"there is no rank {rank}: the plan's {c.num_devices} ranks are 0 to {c.num_devices - 1}.")
    progress("tracing the model")
    prepared, setting = _prepare(plan, model, example_inputs, loss_fn)
    traffic = segment_traffic(setting, plan, placed=prepared.placed)
    memory = predict_plan(setting, plan).memory
    chosen = _chosen(plan, setting, rank)
    progress(f"running {len(chosen)} of {c.num_devices:,} ranks")
    logs = in_children([partial(run_rank, prepared, one.rank) for one in chosen], at_once=at_once)
    position = [one.rank // (c.num_devices // c.pp) for one in chosen]
    return DryRun(
        model=plan.inputs.model,
        world_size=c.num_devices,
        num_microbatches=c.num_microbatches,
        run_microbatches=prepared.plan.candidate.num_microbatches,
        max_difference=max_difference,
        ranks=tuple(
            compare(
                log, one, run=prepared.plan, plan=plan, traffic=traffic[at], memory=memory[at],
                max_difference=max_difference,
            )
            for log, one, at in zip(logs, chosen, position, strict=True)
        ),
    )  # fmt: skip


def check_ranks(
    plan: Plan,
    model: str | nn.Module | None = None,
    *,
    example_inputs: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    at_once: int = 2,
) -> list[Mismatch]:
    """Run every rank of a (small) plan, and see whether they communicate alike (`planner.runtime.dry_run.match`).

    Args: as `dry_run`.
    """
    prepared, _ = _prepare(plan, model, example_inputs, loss_fn)
    return mismatches(
        trace_ranks(lambda rank: run_rank(prepared, rank).calls, plan.candidate.num_devices, at_once=at_once)
    )


def _prepare(
    plan: Plan, model: str | nn.Module | None, example_inputs: Any, loss_fn: Callable[..., Tensor] | None
) -> tuple[Prepared, Setting]:
    job = plan.inputs.job
    dtype = getattr(torch, PRECISIONS[job.precision].compute_dtype)
    source = load_model(plan.inputs.model if model is None else model, dtype=dtype, example_inputs=example_inputs)
    check_plan(plan, source.module)
    program = capture_program(
        source.module, source.inputs, batch=plan.candidate.microbatch_size, seq_len=job.seq_len, dtype=dtype,
        loss_fn=loss_fn, name=source.name,
    )  # fmt: skip
    setting = Setting(program.graph, load_cluster(plan.inputs.hardware), job, TORCH_EAGER)
    placed = placed_blocks(setting, plan)
    prepared = Prepared(source=source, plan=shortened(plan), program=program, placed=placed, loss_fn=loss_fn)
    return prepared, setting


def _chosen(plan: Plan, setting: Setting, rank: int | None) -> tuple[Representative, ...]:
    """The ranks to run."""
    graph = setting.graph
    layouts = plan.layouts or param_layouts(plan_layouts(graph, plan), plan.candidate)
    placed = [(p.shape, next(at for at in layouts if matches(at.pattern, p.fqn))) for p in graph.params]
    found = representatives(plan.candidate, placed)
    if rank is None:
        return found
    same = next(one for one in found if rank in one.represents)
    return (Representative(rank, same.represents, same.why),)
