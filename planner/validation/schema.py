"""The file of measured rows at the border: which keys are read of a row, and their types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _whole(value: Any) -> Any:
    """A count that a table's software wrote as ``8.0``."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole)]


class Row(BaseModel):
    """What is read of a row as its file has it; types are strict, so that a number in quotes is a fault."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    id: str
    group: str
    source: str
    repo: str | None = None
    path: str | None = None
    locator: str | None = None
    date: str | None = None
    hardware: str
    hardware_note: str | None = None
    interconnect: str | None = None
    nodes: Count | None = None
    gpus_per_node: Count | None = None
    gpus: Count | None = None
    model: str
    layers: Count | None = None
    hidden: Count | None = None
    ffn: Count | None = None
    heads: Count | None = None
    kv_heads: Count | None = None
    head_dim: Count | None = None
    vocab: Count | None = None
    seq_len: Count | None = None
    gated_mlp: bool | None = None
    tied_embeddings: bool | None = None
    experts: Count | None = None
    topk: Count | None = None
    moe_ffn: Count | None = None
    shared_expert_ffn: Count | None = None
    params_b: float | None = None
    active_params_b: float | None = None
    precision: str | None = None
    optimizer: str | None = None
    framework: str = "unknown"
    task: str | None = None
    global_batch: Count | None = None
    global_batch_unit: str | None = None
    micro_batch: Count | None = None
    num_microbatches: Count | None = None
    tp: Count | None = None
    pp: Count | None = None
    vpp: Count | None = None
    schedule: str | None = None
    dp: Count | None = None
    zero_stage: Count | None = None
    sharding_note: str | None = None
    sp: bool | None = None
    cp: Count | None = None
    ep: Count | None = None
    recompute: Literal["none", "selective", "full", "partial"] | None = None
    recompute_detail: str | None = None
    offload: str | None = None
    flash_attention: bool | None = None
    overlap: str | None = None
    step_time_s: float | None = None
    tokens_per_s_per_gpu: float | None = None
    tokens_per_s: float | None = None
    samples_per_s: float | None = None
    tflops_per_gpu: float | None = None
    tflops_kind: str | None = None
    metric_definition: str | None = None
    mfu: float | None = None
    hfu: float | None = None
    peak_tflops_assumed: float | None = None
    peak_memory_gib: float | None = None
    memory_kind: str | None = None
    trust: Literal["A", "A-", "B", "C"]
    ready: bool | None = None
    ready_except_recompute: bool | None = None
    core: bool | None = None
    main_kind: str = "layout-unknown"
    derived_fields: list[str] | None = None
    split_note: str | None = None
    from_memory: bool | None = None
    conflict_severity: Literal["hard", "soft"] | None = None
    notes: str | None = None
