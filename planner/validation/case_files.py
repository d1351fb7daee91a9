"""Files of measured rows: ``{"format": 1, "cases": [...]}``.

A row names its model, machine, layout and what was measured. Texts become codes by the rules of
`planner.validation.normalise`; keys that are not read are left alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from planner.errors import MeshwrightError
from planner.validation import normalise
from planner.validation.cases import MEASURED, Case
from planner.validation.schema import Row

FORMAT = 1
"""Version of the file of measured rows."""


class CasesError(MeshwrightError):
    """A file of measured rows that breaks the format: file, row, field, rule."""


def load_cases(paths: Iterable[Path]) -> tuple[Case, ...]:
    """Rows of files in the order they stand there; `CasesError` for the first fault or repeated id."""
    cases: list[Case] = []
    seen: dict[str, Path] = {}
    for path in paths:
        for number, row in enumerate(_rows(path)):
            case = _read(path, number, row)
            if case.id in seen:
                raise CasesError(f"{path}: row {case.id!r} stands in {seen[case.id]} already; ids are of one row each")
            seen[case.id] = path
            cases.append(case)
    return tuple(cases)


def _rows(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CasesError(f"{path}: no file of measured rows: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("cases"), list):
        raise CasesError(f'{path}: no file of measured rows: expected {{"format": {FORMAT}, "cases": [...]}}')
    rows: list[Any] = content["cases"]
    return rows


def _read(path: Path, number: int, raw: Any) -> Case:
    named = raw.get("id") if isinstance(raw, dict) else None
    try:
        row = Row.model_validate(raw)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"])) or "row"
        where = repr(named) if isinstance(named, str) else f"number {number + 1}"
        raise CasesError(f"{path}: row {where}: {field}: {fault['msg']}, not {fault['input']!r:.60}") from error
    return _case(row)


def _sequences(row: Row) -> int | None:
    """The batch in sequences: as it is where they (or samples) are counted, by the length where tokens are; not stated
    where something else is."""
    unit = row.global_batch_unit or "sequences"
    if row.global_batch is None or unit.startswith(("sequences", "samples")):
        return row.global_batch
    if unit.startswith("tokens") and row.seq_len:
        return round(row.global_batch / row.seq_len)
    return None


def _case(row: Row) -> Case:
    """Texts to codes; everything else as it is."""
    content = row.model_dump() | {"global_batch": _sequences(row)}
    same = {name: content[name] for name in _case_fields() if name in content}
    derived = tuple(sorted(row.derived_fields or ()))
    kind, shard_size = normalise.sharding(row.sharding_note, row.zero_stage)
    recomputed = normalise.recomputation(row.recompute_detail)
    framework, version = normalise.framework(row.framework)
    return Case(
        **same
        | {
            "source": normalise.citation(row.source) or row.group,
            "path": normalise.citation(row.path),
            "machine": normalise.machine(row.hardware_note),
            "interconnect": normalise.interconnect(row.hardware, row.interconnect, row.hardware_note),
            "heterogeneous": "heterogeneous" in (row.notes or ""),
            "routing": normalise.routing(row.notes),
            "precision": normalise.precision(row.precision),
            "pure_low_precision": "PURE" in (row.sharding_note or ""),
            "optimizer": normalise.optimizer(row.optimizer),
            "framework": framework,
            "framework_version": version,
            "compiled": normalise.compiled(row.framework, row.notes),
            "task": normalise.task(row.task),
            "schedule": normalise.schedule(row.schedule),
            "stage_layers": normalise.stage_layers(row.recompute_detail, row.notes),
            "embedding_stages": "type:transformer|embedding" in (row.notes or ""),
            "sharding": kind,
            "shard_size": shard_size,
            "cp_kind": normalise.context_parallel_kind(row.sharding_note, row.overlap),
            "recompute_layers": recomputed.layers,
            "recompute_stage_layers": recomputed.stage_layers,
            "recompute_modules": recomputed.modules,
            "recompute_inferred": recomputed.inferred or "recompute" in derived,
            "offload": normalise.offload(row.offload),
            "overlap": normalise.overlaps(row.overlap, row.sharding_note),
            "flops_kind": normalise.flops(row.tflops_kind, row.metric_definition),
            "printed": tuple(name for name in MEASURED if content[name] is not None and name not in derived),
            "memory_kind": normalise.memory_kind(row.memory_kind) if row.peak_memory_gib is not None else None,
            "out_of_memory": normalise.out_of_memory(row.notes, row.memory_kind, row.metric_definition),
            "ready": bool(row.ready),
            "ready_except_recompute": bool(row.ready or row.ready_except_recompute),
            "set_aside": row.split_note,
            "from_memory": bool(row.from_memory),
            "conflict": row.conflict_severity,
            "core": bool(row.core),
            "derived_fields": derived,
        }
    )


@functools.cache
def _case_fields() -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(Case))
