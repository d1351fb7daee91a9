"""Models of every family train under plans as they do on one process: 4 and 8 processes, float32, 3 steps of AdamW.

A selection that covers every axis, what is combined in practice, and every family; `benchmarks/equivalence.py` runs all
of `tests.planner.runtime.matrix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from planner.errors import UsageError
from tests.planner.runtime.equivalence import Case, Worst, compare
from tests.planner.runtime.matrix import FSDP_TP, plans

FOUR = {
    "gqa": (
        "fsdp", "zero 2", "zero 1", "hsdp", "tp", "fsdp x tp + sp, full", "fsdp x tp + sp, selective", "pp x fsdp",
        "cp gathered", "cp ring", "cp ulysses x ring", "cp ulysses x fsdp", "cp ring x fsdp, full",
        "cp ulysses x tp + sp, selective", "pp x cp ring",
    ),
    "mqa": ("tp + sp", "cp gathered x fsdp"),
    "gpt": ("fsdp x tp + sp", "pp x fsdp, full", "cp ring x tp + sp", "pp x tp + sp, selective"),
    "thirds": ("fsdp x tp + sp", "cp gathered x tp + sp"),
    "mixtral": (
        "ep x fsdp x tp + sp", "ep over dp x tp + sp", "pp x ep", "ep x cp", "ep x fsdp, experts permuted",
        "ep, experts with replicas", "ep x fsdp, full", "cp ring x fsdp",
    ),
    "qwen": ("ep x hsdp", "ep x fsdp x tp + sp, selective", "tp"),
    "mla": ("fsdp x tp + sp", "pp x ep", "cp ring x fsdp"),
    "resnet": ("fsdp", "fsdp x tp + sp", "pp x fsdp"),
    "vit": ("fsdp x tp + sp", "pp x fsdp, full"),
    "hf llama": ("fsdp x tp + sp", "pp x fsdp", "cp ring x tp + sp"),
    "hf gpt2": ("fsdp x tp + sp",),
}  # fmt: skip
EIGHT = {
    "gqa": (
        "hsdp x tp + sp", "pp x fsdp x tp + sp, 1f1b", "pp x fsdp x tp + sp, gpipe", "pp x fsdp x tp + sp, zb-v",
        "pp x fsdp x tp + sp, interleaved-1f1b", "cp ulysses x ring x fsdp", "pp x cp ulysses x tp + sp",
    ),
    "gpt": ("pp x fsdp x tp + sp, looped-bfs", "pp x fsdp x tp + sp, dualpipe-v", "pp x fsdp x tp + sp, zb-h1"),
    "mixtral": ("pp x ep x fsdp x tp + sp", "ep x cp x tp + sp", "ep x hsdp x tp + sp"),
}  # fmt: skip

UNEVEN = (
    Case("gqa", {"tp": 4, "sequence_parallel": True}, {"vocab_size": 50}),
    Case("gqa", FSDP_TP, {"vocab_size": 51, "hidden_dim": 26}),
    Case("gpt", {"pp": 2, "tp": 2, "num_microbatches": 2}, {"vocab_size": 53}),
    Case("gqa", {"dp_shard": 4, "num_microbatches": 2}, {"vocab_size": 51, "hidden_dim": 25}),
)
"""Vocabularies and widths that devices do not divide: those of embeddings and heads lie whole, or padded."""

PP_FSDP = {"pp": 2, "dp_shard": 2, "num_microbatches": 2}
BF16 = tuple(Case("gqa", {**changes, "precision": "bf16"}) for changes in (FSDP_TP, PP_FSDP))


@pytest.fixture(autouse=True)
def transformers() -> None:
    pytest.importorskip("transformers", reason="an optional dependency: pip install 'meshwright[hf]'")


def cases(selected: dict[str, Sequence[str]], num_ranks: int) -> list[Case]:
    return [Case(family, plans(family, num_ranks)[name]) for family, names in selected.items() for name in names]


def told(chosen: Sequence[Case], found: Sequence[Worst], **limits: float) -> str:
    wrong = [(case, worst) for case, worst in zip(chosen, found, strict=True) if worst.beyond(**limits)]
    return "\n".join(f"{case}: {worst.error or worst}" for case, worst in wrong)


def test_plans_of_4_processes() -> None:
    one_sample = Case("hf llama", {"tp": 2, "dp_shard": 2, "microbatch_size": 1})
    chosen = [*cases(FOUR, 4), *UNEVEN, one_sample]
    wrong = told(chosen, compare(4, chosen, timeout_s=300))
    assert not wrong, wrong


def test_plans_of_8_processes() -> None:
    chosen = cases(EIGHT, 8)
    wrong = told(chosen, compare(8, chosen, timeout_s=300))
    assert not wrong, wrong


def test_bfloat16_is_as_near_as_its_digits() -> None:
    """8 bits: of losses about 4 a hundredth; gradients by more, for they are sums of rounded products."""
    wrong = told(BF16, compare(4, BF16), loss=0.03, gradient=0.05)
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("mqa", {"cp": 4, "context": "ulysses"}, "cannot be laid out over cp 4"),
        ("gqa", {"cp": 3}, "cannot be laid out over cp 3"),
    ],
)
def test_what_does_not_divide_is_refused(family: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compare(changes["cp"], [Case(family, changes)])
