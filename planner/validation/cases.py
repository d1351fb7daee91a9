"""Measured training runs to compare prices with: a `Case` per run, and the file that holds them.

``{"format": 1, "cases": [...]}``; a row names its model, machine, layout and what was measured. Texts become codes by
the rules of `planner.validation.normalise`; keys that are not read are left alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from planner.errors import MeshwrightError
from planner.validation import normalise
from planner.validation.normalise import MemoryKind, Precision, Schedule, Sharding
from planner.validation.schema import Row

FORMAT = 1
"""Version of the file of measured rows."""

SCORED_TRUST = ("A", "A-", "B")


class CasesError(MeshwrightError):
    """A file of measured rows that breaks the format: file, row, field, rule."""


class CannotPriceError(MeshwrightError):
    """A run that cannot be priced: what of it the cost model does not have, or the row does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One measured run. Fields are named as in the file where they mean the same; None: the source does not say.

    Batches count sequences. ``dp`` counts all data-parallel devices, ``shard_size`` those of them that share one copy
    of the state (None: all). ``interconnect`` are the cards between nodes, as `planner.validation.clusters` reads them.
    ``stage_layers`` may count embedding and head as a layer each: their sum says so. ``recompute_layers`` (of every
    stage), or ``recompute_stage_layers`` (of each), are computed again where ``recompute`` is partial or full. ``mfu``
    and ``hfu`` are fractions of ``peak_tflops_assumed``; ``flops_kind`` names whose FLOP they and ``tflops_per_gpu``
    count. ``printed`` are the measured fields that stand in the source; the others were computed from them.
    """

    id: str
    group: str
    source: str
    date: str | None = None
    repo: str | None = None
    path: str | None = None
    locator: str | None = None

    hardware: str
    machine: str | None = None
    interconnect: str | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None
    gpus: int | None = None
    heterogeneous: bool = False

    model: str
    layers: int | None = None
    hidden: int | None = None
    ffn: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocab: int | None = None
    seq_len: int | None = None
    gated_mlp: bool | None = None
    tied_embeddings: bool | None = None
    experts: int | None = None
    topk: int | None = None
    moe_ffn: int | None = None
    shared_expert_ffn: int | None = None
    params_b: float | None = None
    active_params_b: float | None = None
    routing: str | None = None

    precision: Precision | None = None
    pure_low_precision: bool = False
    optimizer: str | None = None
    framework: str
    framework_version: str | None = None
    compiled: bool | None = None
    task: str | None = None

    global_batch: int | None = None
    micro_batch: int | None = None
    num_microbatches: int | None = None
    tp: int | None = None
    pp: int | None = None
    vpp: int | None = None
    schedule: Schedule | None = None
    stage_layers: tuple[int, ...] = ()
    embedding_stages: bool = False
    dp: int | None = None
    zero_stage: int | None = None
    sharding: Sharding | None = None
    shard_size: int | None = None
    sp: bool | None = None
    cp: int | None = None
    cp_kind: Literal["ulysses", "ring"] | None = None
    ep: int | None = None
    recompute: Literal["none", "selective", "full", "partial"] | None = None
    recompute_layers: int | None = None
    recompute_stage_layers: tuple[int, ...] = ()
    recompute_modules: tuple[str, ...] = ()
    recompute_inferred: bool = False
    offload: str | None = None
    flash_attention: bool | None = None
    overlap: tuple[str, ...] = ()

    step_time_s: float | None = None
    tokens_per_s_per_gpu: float | None = None
    tokens_per_s: float | None = None
    samples_per_s: float | None = None
    tflops_per_gpu: float | None = None
    flops_kind: str | None = None
    mfu: float | None = None
    hfu: float | None = None
    peak_tflops_assumed: float | None = None
    printed: tuple[str, ...] = ()
    peak_memory_gib: float | None = None
    memory_kind: MemoryKind | None = None
    out_of_memory: bool = False

    trust: Literal["A", "A-", "B", "C"]
    ready: bool = False
    ready_except_recompute: bool = False
    set_aside: str | None = None
    from_memory: bool = False
    conflict: Literal["hard", "soft"] | None = None
    core: bool = False
    main_kind: str
    derived_fields: tuple[str, ...] = ()

    @property
    def moe(self) -> bool:
        """Whether the model has experts: rows of such models are reported apart."""
        return self.experts is not None or self.main_kind == "moe"

    @property
    def scored(self) -> bool:
        """Whether the row counts: trusted, complete but for recomputation, neither repeated, recalled nor at odds."""
        return self.why_not_scored is None

    @property
    def why_not_scored(self) -> str | None:
        """The first rule of scoring that the row breaks; None for a row that counts."""
        if self.out_of_memory:
            return "out of memory: counts for feasibility only"
        if self.set_aside is not None:
            return self.set_aside
        if self.from_memory:
            return "recalled, not read in the source"
        if self.conflict == "hard":
            return "its numbers do not add up"
        if self.trust not in SCORED_TRUST:
            return f"trust {self.trust}: indicative only"
        if not self.ready_except_recompute:
            return "the source leaves settings open"
        return None


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


MEASURED = ("step_time_s", "tokens_per_s_per_gpu", "tokens_per_s", "samples_per_s", "tflops_per_gpu", "mfu", "hfu")
"""Fields of which any says how long a step took."""


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
    if row.global_batch_unit is not None and not row.global_batch_unit.startswith("sequences"):
        raise CasesError(
            f"{path}: row {row.id!r}: global_batch_unit: sequences are counted, not {row.global_batch_unit!r}"
        )
    return _case(row)


def _case(row: Row) -> Case:
    """Texts to codes; everything else as it is."""
    content = row.model_dump()
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
