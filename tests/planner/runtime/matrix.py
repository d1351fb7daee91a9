"""Plans of 4 and 8 processes that models train under: every axis alone, and what is combined in practice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.plan import ExpertPlacement
from tests.planner.layouts.small import CONFIGS

DENSE = ("gqa", "mqa", "gpt", "bert", "thirds", "hf llama", "hf gpt2", "hf qwen3")
MIXTURES = ("mixtral", "qwen", "mla", "hf mixtral")
IMAGES = ("resnet", "vit")
FAMILIES = (*DENSE, *MIXTURES, *IMAGES)
assert set(CONFIGS) <= set(FAMILIES)

SP = {"tp": 2, "sequence_parallel": True}
FSDP_TP = {"dp_shard": 2, **SP}
TWICE = {"num_microbatches": 4, "num_chunks": 2}
PERMUTED = (ExpertPlacement(block="*layers.*", ranks=((1,), (0,), (1,), (0,))),)
REPLICAS = (ExpertPlacement(block="*layers.*", ranks=((0, 1), (0, 2), (1, 3), (2, 3))),)

Plans = Mapping[str, Mapping[str, Any]]

FOUR: Plans = {
    "ddp": {"dp_replicate": 4},
    "fsdp": {"dp_shard": 4, "num_microbatches": 2},
    "zero 2": {"dp_shard": 4, "zero_stage": 2, "num_microbatches": 2},
    "zero 1": {"dp_shard": 4, "zero_stage": 1, "num_microbatches": 2},
    "hsdp": {"dp_replicate": 2, "dp_shard": 2, "num_microbatches": 2},
    "tp": {"tp": 4},
    "tp + sp": {"tp": 4, "sequence_parallel": True},
    "fsdp x tp + sp": FSDP_TP,
    "fsdp x tp + sp, full": {**FSDP_TP, "recompute": "full"},
    "fsdp x tp + sp, selective": {**FSDP_TP, "recompute": "selective"},
    "pp": {"pp": 4, "num_microbatches": 4},
    "pp x fsdp": {"pp": 2, "dp_shard": 2, "num_microbatches": 2},
    "pp x fsdp, full": {"pp": 2, "dp_shard": 2, "num_microbatches": 2, "recompute": "full"},
    "pp x tp + sp, selective": {"pp": 2, **SP, "num_microbatches": 2, "recompute": "selective"},
    "pp x fsdp, zb-v": {"pp": 2, "dp_shard": 2, "schedule": "zb-v", "zero_stage": 2, **TWICE},
    "pp x fsdp, interleaved": {"pp": 2, "dp_shard": 2, "schedule": "interleaved-1f1b", **TWICE},
}
CONTEXT: Plans = {
    "cp gathered": {"cp": 4},
    "cp ring": {"cp": 4, "context": "ring"},
    "cp ulysses": {"cp": 4, "context": "ulysses"},
    "cp ulysses x ring": {"cp": 4, "context": "ulysses_ring", "ulysses": 2},
    "cp gathered x fsdp": {"cp": 2, "dp_shard": 2},
    "cp ring x fsdp": {"cp": 2, "dp_shard": 2, "context": "ring", "num_microbatches": 2},
    "cp ulysses x fsdp": {"cp": 2, "dp_shard": 2, "context": "ulysses"},
    "cp gathered x tp + sp": {"cp": 2, **SP},
    "cp ring x tp + sp": {"cp": 2, **SP, "context": "ring"},
    "cp ulysses x tp + sp": {"cp": 2, **SP, "context": "ulysses"},
    "cp ring x fsdp, full": {"cp": 2, "dp_shard": 2, "context": "ring", "recompute": "full"},
    "cp ulysses x tp + sp, selective": {"cp": 2, **SP, "context": "ulysses", "recompute": "selective"},
    "pp x cp ring": {"pp": 2, "cp": 2, "context": "ring", "num_microbatches": 2},
}
EXPERTS: Plans = {
    "ep": {"dp_shard": 4, "ep": 4},
    "ep x fsdp": {"dp_shard": 4, "ep": 2, "num_microbatches": 2},
    "ep x hsdp": {"dp_replicate": 2, "dp_shard": 2, "ep": 2},
    "ep x fsdp x tp + sp": {**FSDP_TP, "ep": 2},
    "ep over dp x tp + sp": {**FSDP_TP, "ep": 4, "num_microbatches": 2},
    "ep x cp": {"dp_shard": 2, "cp": 2, "ep": 4, "context": "ring"},
    "pp x ep": {"pp": 2, "dp_shard": 2, "ep": 2, "num_microbatches": 2},
    "ep x fsdp, full": {"dp_shard": 4, "ep": 2, "recompute": "full"},
    "ep x fsdp x tp + sp, selective": {**FSDP_TP, "ep": 2, "recompute": "selective"},
    "ep x fsdp, experts permuted": {"dp_shard": 4, "ep": 2, "experts": PERMUTED},
    "ep, experts with replicas": {"dp_shard": 4, "ep": 4, "experts": REPLICAS},
}
EIGHT: Plans = {
    "hsdp x tp + sp": {"dp_replicate": 2, **FSDP_TP},
    **{
        f"pp x fsdp x tp + sp, {schedule}": {"pp": 2, **FSDP_TP, "schedule": schedule, **more}
        for schedule, more in {
            "1f1b": {"num_microbatches": 2},
            "gpipe": {"num_microbatches": 2},
            "interleaved-1f1b": TWICE,
            "looped-bfs": TWICE,
            "zb-h1": {**TWICE, "zero_stage": 2},
            "zb-v": {**TWICE, "zero_stage": 2},
            "dualpipe-v": {**TWICE, "zero_stage": 2},
        }.items()
    },
    "tp 4 + sp x fsdp": {"dp_shard": 2, "tp": 4, "sequence_parallel": True},
}
CONTEXT_EIGHT: Plans = {
    "cp ulysses x ring x fsdp": {"cp": 4, "dp_shard": 2, "context": "ulysses_ring", "ulysses": 2},
    "cp ring x fsdp x tp + sp": {"cp": 2, **FSDP_TP, "context": "ring"},
    "pp x cp ulysses x tp + sp": {"pp": 2, "cp": 2, **SP, "context": "ulysses", "num_microbatches": 2},
}
EXPERTS_EIGHT: Plans = {
    "ep x hsdp x tp + sp": {"dp_replicate": 2, **FSDP_TP, "ep": 2},
    "pp x ep x fsdp x tp + sp": {"pp": 2, **FSDP_TP, "ep": 4, "num_microbatches": 2},
    "ep x cp x tp + sp": {"cp": 2, **FSDP_TP, "ep": 4, "context": "ring"},
    "ep 4 x fsdp": {"dp_shard": 8, "ep": 4},
}


def plans(family: str, num_ranks: int) -> dict[str, Mapping[str, Any]]:
    """Those that make sense of a model, by name."""
    found = dict(FOUR if num_ranks == 4 else EIGHT)
    if family not in IMAGES:
        found |= CONTEXT if num_ranks == 4 else CONTEXT_EIGHT
    if family in MIXTURES:
        found |= EXPERTS if num_ranks == 4 else EXPERTS_EIGHT
    if family in ("thirds", *IMAGES):  # of two blocks or a few
        found = {name: p for name, p in found.items() if p.get("pp", 1) * p.get("num_chunks", 1) <= 2}
    if family == "mla":  # of 8 experts
        found = {name: p for name, p in found.items() if "experts" not in p}
    return found
