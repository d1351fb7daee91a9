"""A dry run as tables or JSON."""

from __future__ import annotations

import json

from rich.console import RenderableType
from rich.text import Text

from costmodels import units
from planner.dry_run_result import DryRun, RankResult, relative
from planner.report.columns import columns, text


def render(found: DryRun, *, color: bool = False) -> str:
    """Per rank the peak and the collectives beside what was predicted, and where differences lie."""
    sections: list[RenderableType] = [_headline(found), _ranks(found)]
    differing = [rank for rank in found.ranks if rank.largest > 0]
    for shown in _distinct(found):
        sections += [_collectives(shown), _memory(shown)]
    sections += [_differences(rank) for rank in differing if rank.differences]
    return text(sections, width=None, color=color)


def to_json(found: DryRun) -> str:
    """One JSON object."""
    return (
        json.dumps(
            {
                "ok": found.ok,
                "world_size": found.world_size,
                "max_diff": found.max_difference,
                "num_microbatches": found.num_microbatches,
                "run_microbatches": found.run_microbatches,
                "ranks": [_rank_json(rank) for rank in found.ranks],
            },
            indent=2,
        )
        + "\n"
    )


def _rank_json(rank: RankResult) -> dict[str, object]:
    return {
        "rank": rank.rank,
        "represents": rank.represents,
        "why": rank.why,
        "peak_bytes": rank.peak_bytes,
        "predicted_peak_bytes": rank.predicted_peak_bytes,
        "memory": dict(rank.memory),
        "predicted_memory": dict(rank.predicted_memory),
        "collectives": [
            {
                "axis": c.axis,
                "kind": c.kind,
                "count": c.count,
                "bytes": c.num_bytes,
                "predicted_count": c.predicted_count,
                "predicted_bytes": c.predicted_bytes,
            }
            for c in rank.collectives
        ],
        "differences": [
            {"what": d.what, "fqn": d.fqn, "bytes": d.found, "predicted_bytes": d.predicted} for d in rank.differences
        ],
        "cpu_s": rank.cpu_s,
        "host_bytes": rank.host_bytes,
    }


def _headline(found: DryRun) -> RenderableType:
    run = (
        f"{found.run_microbatches} of {found.num_microbatches:,} microbatches, the others repeat them"
        if found.run_microbatches < found.num_microbatches
        else f"all {found.num_microbatches:,} microbatches"
    )
    outcome = "as predicted" if found.ok else "NOT as predicted"
    return Text.assemble(
        (found.model, "bold"),
        f" on {found.world_size:,} ranks, {len(found.ranks)} of them run; {run}; ",
        (outcome, "bold"),
        f" (differences of at most {found.max_difference:.3g} allowed)",
    )


def _ranks(found: DryRun) -> RenderableType:
    table = columns(
        ">rank", ">speaks for", ">peak", ">predicted", ">diff", ">collectives diff", ">CPU s", ">host", "because"
    )
    for rank in found.ranks:
        worst = max((c.difference for c in rank.collectives), default=0.0)
        table.add_row(
            f"{rank.rank:,}",
            f"{len(rank.represents):,}",
            units.format_bytes(rank.peak_bytes),
            units.format_bytes(rank.predicted_peak_bytes),
            _share(relative(rank.peak_bytes, rank.predicted_peak_bytes)),
            _share(worst),
            f"{rank.cpu_s:.1f}",
            units.format_bytes(rank.host_bytes),
            rank.why,
        )
    return table


def _distinct(found: DryRun) -> list[RankResult]:
    """Ranks in full: the first, the one that differs most, and of others none."""
    worst = max(found.ranks, key=lambda rank: rank.largest)
    return [found.ranks[0]] if worst is found.ranks[0] or worst.largest == 0 else [found.ranks[0], worst]


def _collectives(rank: RankResult) -> RenderableType:
    table = columns(f"rank {rank.rank:,}: axis", "kind", ">count", ">predicted", ">bytes", ">predicted", "")
    for c in rank.collectives:
        table.add_row(
            c.axis, c.kind, f"{c.count:,}", f"{c.predicted_count:,}", f"{c.num_bytes:,}", f"{c.predicted_bytes:,}",
            "" if c.difference == 0 else "differs",
        )  # fmt: skip
    return table


def _memory(rank: RankResult) -> RenderableType:
    table = columns(f"rank {rank.rank:,}: at the peak", ">held", "the plan's parts", ">predicted", "")
    held = sorted(rank.memory.items(), key=lambda item: -item[1])
    predicted = sorted(
        ((name, size) for name, size in rank.predicted_memory.items() if size), key=lambda item: -item[1]
    )
    for i in range(max(len(held), len(predicted))):
        name, size = held[i] if i < len(held) else ("", None)
        part, said = predicted[i] if i < len(predicted) else ("", None)
        shown = ["" if value is None else units.format_bytes(value) for value in (size, said)]
        table.add_row(name, shown[0], part, shown[1], "")
    return table


def _differences(rank: RankResult) -> RenderableType:
    table = columns(f"rank {rank.rank:,} differs in", "module", ">bytes", ">predicted", "")
    for d in rank.differences:
        predicted = "" if d.predicted is None else f"{d.predicted:,}"
        table.add_row(d.what, d.fqn or "(none)", f"{d.found:,}", predicted, "")
    return table


def _share(value: float) -> str:
    return f"{value:.2%}" if value != float("inf") else "unpredicted"
