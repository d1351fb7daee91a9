"""Plans and models as text for a terminal; equal values give equal text.

A plan takes at most `MAX_LINES` lines of `WIDTH` columns: what does not fit is summed up, never wrapped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from costmodels import units
from costmodels.breakdown import Breakdown
from planner.plan import Candidate, Plan, PlanResult, known
from planner.report.columns import WIDTH as WIDTH
from planner.report.columns import columns, cut, text

MAX_LINES = 30
_MAX_PLANS = 8
_MAX_PARTS = 8
_MAX_REASONS = 3


class Preset(Protocol):
    """What is shown of a built-in model."""

    @property
    def published_parameters(self) -> int: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def description(self) -> str: ...


def render(result: PlanResult, *, saved: Path | None = None, color: bool = False) -> str:
    """The plan, its runners-up, why they are slower, where time and memory go, and how sure the search is.

    ``saved`` is the file that the plan was saved in, if any. Text of at most `MAX_LINES` lines of `WIDTH` columns.
    """
    plan = result.plan
    sections = [_headline(plan), _plans(result), _prices(plan), _outcome(plan, saved)]
    return text(sections, color=color)


def render_models(presets: Mapping[str, Preset]) -> str:
    """Built-in models: name, published number of parameters (rounded), default sequence length, description."""
    table = columns("model", ">parameters", ">seq len", "")
    for name, preset in presets.items():
        table.add_row(name, units.format_count(preset.published_parameters), f"{preset.seq_len:,}", preset.description)
    return text([table])


def layout_words(candidate: Candidate) -> str:
    """A candidate in words but for its recomputation: ``pp4 dp2x8(zero3) tp8+sp mb1 x16``.

    ``dp2x8`` is 2 replicas, each sharded over 8; ``mb1 x16`` is 16 microbatches of one sample. What no search chooses
    is named where it is not 1: ``cp4(ring)``, ``ep8``.
    """
    sharded = f"{candidate.dp_shard}(zero{candidate.zero_stage})"
    if candidate.dp_shard == 1:
        data = f"dp{candidate.dp_replicate}"
    elif candidate.dp_replicate == 1:
        data = f"dp{sharded}"
    else:
        data = f"dp{candidate.dp_replicate}x{sharded}"
    sequence = "+sp" if candidate.sequence_parallel else ""
    more = f" cp{candidate.cp}({candidate.context})" if candidate.cp > 1 else ""
    more += f" ep{candidate.ep}" if candidate.ep > 1 else ""
    microbatches = f"mb{candidate.microbatch_size} x{candidate.num_microbatches}"
    return f"pp{candidate.pp} {data} tp{candidate.tp}{sequence}{more} {microbatches}"


def why_slower(best: Breakdown, other: Breakdown) -> str:
    """The group of terms that grew most from ``best`` to ``other``: ``+310 ms tp.collectives``."""
    groups, reference = _groups(other), _groups(best)
    growth = {name: groups.get(name, 0.0) - reference.get(name, 0.0) for name in {**reference, **groups}}
    name, seconds = _largest_first(growth)[0]
    return f"+{units.format_seconds(seconds)} {name}" if seconds > 0 else "as fast"


_SURE = {
    "measured": "all figures measured",
    "datasheet": "figures measured or from datasheets",
    "derived": "figures measured, from datasheets, some derived",
}
"""What the weakest evidence of a cluster's figures says of them all."""


def _headline(plan: Plan) -> RenderableType:
    inputs, job = plan.inputs, plan.inputs.job
    samples = f"{job.global_batch:,} x {job.seq_len:,} tokens" if job.seq_len > 1 else f"{job.global_batch:,} samples"
    return Text.assemble(
        (inputs.model, "bold"),
        f": {units.format_count(known(inputs.num_parameters))} parameters, {samples} per step, {job.precision}, "
        f"{job.optimizer}\n",
        (inputs.hardware, "bold"),
        f": {inputs.num_devices:,} devices of {units.format_bytes(known(inputs.device_memory_bytes))}, "
        f"{_SURE[known(inputs.hardware_evidence)]}",
    )


def _plans(result: PlanResult) -> RenderableType:
    inputs, predicted = result.plan.inputs, known(result.plan.predicted)
    best, capacity = predicted.breakdown, units.gib(known(inputs.device_memory_bytes))
    unit = "tok" if inputs.job.seq_len > 1 else "samples"
    table = columns("layout", "recompute", ">step", f">{unit}/s/dev", ">MFU", ">peak GiB", "why slower")
    plans = [(result.plan.candidate, predicted), *((a.candidate, a.predicted) for a in result.alternatives)]
    for rank, (candidate, predicted) in enumerate(plans[:_MAX_PLANS], start=1):
        rate = predicted.tokens_per_s / inputs.num_devices
        table.add_row(
            layout_words(candidate),
            candidate.recompute,
            units.format_seconds(predicted.step_s),
            f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}",
            f"{predicted.mfu:.1%}",
            f"{units.gib(predicted.peak_bytes):.1f}/{capacity:.0f}",
            cut("best" if rank == 1 else why_slower(best, predicted.breakdown)),
            style="bold" if rank == 1 else "",
        )
    if len(plans) > _MAX_PLANS:
        table.add_row(f"{len(plans) - _MAX_PLANS} more with --json")
    return table


def _prices(plan: Plan) -> RenderableType:
    """Step time and memory of the fullest stage, side by side."""
    predicted = known(plan.predicted)
    breakdown, memory = predicted.breakdown, predicted.memory
    step, low, high = (units.format_seconds(s) for s in (breakdown.step_s, breakdown.low_s, breakdown.high_s))
    times = _parts(f"step {step} (overlap all {low}, none {high})", _groups(breakdown), units.format_seconds)
    fullest = max(range(len(memory)), key=lambda stage: memory[stage].total_bytes)
    peak = units.format_bytes(predicted.peak_bytes)
    capacity = units.format_bytes(known(plan.inputs.device_memory_bytes))
    sizes = _parts(
        f"peak {peak} of {capacity} (stage {fullest + 1} of {len(memory)})", memory[fullest].parts, units.format_bytes
    )
    side_by_side = Table.grid(padding=(0, 4))
    side_by_side.add_row(times, sizes)
    return side_by_side


def _parts(title: str, parts: Mapping[str, float], shown: Callable[[float], str]) -> RenderableType:
    """Parts of a sum with their shares, largest first; those beyond `_MAX_PARTS` lines are added up."""
    rows = _largest_first({name: value for name, value in parts.items() if value})
    if len(rows) > _MAX_PARTS:
        rest = rows[_MAX_PARTS - 1 :]
        rows[_MAX_PARTS - 1 :] = [(f"{len(rest)} smaller", sum(value for _, value in rest))]
    total = sum(value for _, value in rows)
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for name, value in rows:
        table.add_row(cut(name), shown(value), f"{value / total:.0%}")
    return Group(Text(title, style="bold"), table)


def _outcome(plan: Plan, saved: Path | None) -> RenderableType:
    """How sure the search is, and what the user can do next."""
    search, step_s = known(plan.search), known(plan.predicted).step_s
    reasons = _largest_first(search.rejected)
    rejected = [f"{count:,} {reason}" for reason, count in reasons[:_MAX_REASONS]]
    other = sum(count for _, count in reasons[_MAX_REASONS:])
    rejected += [f"{other:,} other"] if other else []
    proof = (
        "no candidate that fits is faster"
        if math.isclose(step_s, search.bound_s)
        else f"at most {search.gap(step_s):.1%} slower than the fastest candidate that fits"
    )
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold", no_wrap=True)
    counts = f"{search.candidates:,} candidates, {search.priced:,} priced; rejected: {', '.join(rejected) or 'none'}"
    lines.add_row("search", cut(counts))
    lines.add_row("proof", cut(proof))
    if plan.warnings:
        lines.add_row("warnings", f"{len(plan.warnings)}, in full on stderr and under warnings of the plan")
    if saved is not None:
        lines.add_row("saved", cut(str(saved)))
    save = "" if saved else "; -o plan.json saves this one"
    lines.add_row("next", f"pins such as --tp 8 or --recompute none price other plans{save}")
    return lines


def _groups(breakdown: Breakdown) -> dict[str, float]:
    """Seconds by the first two parts of the terms' names: ``compute.gemm.forward`` counts as ``compute.gemm``."""
    groups: dict[str, float] = {}
    for term in breakdown.terms:
        name = ".".join(term.name.split(".")[:2])
        groups[name] = groups.get(name, 0.0) + term.seconds
    return groups


def _largest_first(values: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda item: (-item[1], item[0]))
