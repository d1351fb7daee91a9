"""Measured training runs to compare prices with: a `Case` per run, and whether it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.errors import MeshwrightError

Precision = Literal["fp32", "bf16", "fp16", "fp8", "mxfp8", "nvfp4"]
MemoryKind = Literal["allocated", "reserved", "nvidia-smi", "unspecified"]
Schedule = Literal["none", "1f1b", "interleaved", "gpipe"]
Sharding = Literal["ddp", "zero", "fsdp", "hsdp"]

SCORED_TRUST = ("A", "A-", "B")

MEASURED = ("step_time_s", "tokens_per_s_per_gpu", "tokens_per_s", "samples_per_s", "tflops_per_gpu", "mfu", "hfu")
"""Fields of which any says how long a step took."""


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
