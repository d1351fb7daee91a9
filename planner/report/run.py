"""A training run as text or JSON: a line per step as it happens, then predicted beside measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from costmodels.units import format_bytes, format_seconds
from planner.plan import Plan
from planner.report.columns import columns, text
from planner.report.table import layout_words
from planner.run_result import RunResult, Step

_LINE = "{:>6} {:>10} {:>10} {:>9} {:>12} {:>10}\n"


def heading(plan: Plan) -> str:
    """What is run, and the names of the columns of `step_line`."""
    job = plan.inputs.job
    return f"{plan.inputs.model} as {layout_words(plan.candidate)}, {job.precision}, {job.optimizer}\n" + _LINE.format(
        "step", "loss", "grad norm", "time", f"{_unit(plan)}/s", "memory"
    )


def step_line(plan: Plan, step: Step) -> str:
    """One line, as soon as the step is over."""
    job = plan.inputs.job
    return _LINE.format(
        step.number, f"{step.loss:.4f}", f"{step.grad_norm:.3g}", format_seconds(step.seconds),
        f"{job.global_batch * job.seq_len / step.seconds:,.0f}", format_bytes(step.peak_bytes),
    )  # fmt: skip


def render(result: RunResult, *, traces: Path | None = None, color: bool = False) -> str:
    """Predicted beside measured, and where the traces lie if there are any."""
    sections: list[RenderableType] = [_comparison(result)]
    if traces is not None:
        sections.append(
            Text(f"traces (for chrome://tracing or Perfetto): {traces}/predicted.json, measured-rank*.json")
        )
    return "\n" + text(sections, color=color)


def to_json(result: RunResult) -> str:
    """All of it as one JSON object: ``steps``, and ``measured`` and ``predicted`` with the same four figures."""
    predicted = result.predicted
    content = {
        "model": result.plan.inputs.model,
        "hardware": result.plan.inputs.hardware,
        "device": result.device,
        "world_size": result.plan.candidate.num_devices,
        "steps": [asdict(step) for step in result.steps],
        "measured": _figures(result, result.step_s, result.peak_bytes),
        "predicted": predicted and _figures(result, predicted.step_s, predicted.peak_bytes),
    }
    return json.dumps(content, indent=2) + "\n"


def _figures(result: RunResult, step_s: float, peak_bytes: int) -> dict[str, Any]:
    return {
        "step_s": step_s,
        "tokens_per_s": result.tokens_per_s(step_s),
        "mfu": result.mfu(step_s),
        "peak_bytes": peak_bytes,
    }


def _comparison(result: RunResult) -> RenderableType:
    table = columns("", ">measured", ">predicted", ">error", "")
    predicted, measured_s = result.predicted, result.step_s
    timed = result.timed
    which = f"median of {len(timed)} steps" if len(timed) > 1 else f"step {timed[0].number} alone"
    expected_s = None if predicted is None else predicted.step_s
    table.add_row("step time", format_seconds(measured_s), *_beside(measured_s, expected_s, format_seconds), which)
    rate = result.tokens_per_s(measured_s)
    expected_rate = None if expected_s is None else result.tokens_per_s(expected_s)
    table.add_row(f"{_unit(result.plan)}/s", f"{rate:,.0f}", *_beside(rate, expected_rate, "{:,.0f}".format), "")
    if (mfu := result.mfu(measured_s)) is not None and predicted is not None:
        table.add_row("MFU", f"{mfu:.1%}", f"{predicted.mfu:.1%}", "", "")
    expected_bytes = None if predicted is None else predicted.peak_bytes
    where = "fullest device" if result.device != "cpu" else "largest process, with what torch has freed"
    table.add_row(
        "memory", format_bytes(result.peak_bytes), *_beside(result.peak_bytes, expected_bytes, format_bytes), where
    )
    return table


def _beside(measured: float, predicted: float | None, shown: Any) -> tuple[str, str]:
    return ("unknown", "") if not predicted else (shown(predicted), f"{predicted / measured - 1:+.1%}")


def _unit(plan: Plan) -> str:
    return "tokens" if plan.inputs.job.seq_len > 1 else "samples"
