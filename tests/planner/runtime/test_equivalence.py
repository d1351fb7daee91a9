"""Models of every family train under plans as they do on one process: 4 and 8 processes, float32, 3 steps of AdamW.

A selection that covers every axis, what is combined in practice, and every family; `benchmarks/equivalence.py` runs all
of `tests.planner.runtime.matrix`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from planner.errors import UsageError
from tests.planner.runtime.equivalence import Case, Worst, compare
from tests.planner.runtime.matrix import FSDP_TP, plans

FOUR = {
    "gqa": (
        "zero 1", "hsdp", "tp", "fsdp x tp + sp, selective", "pp x fsdp", "cp gathered", "cp ring", "cp ulysses x ring",
        "cp ulysses x tp + sp, selective",
    ),
    "mqa": ("tp + sp",),
    "gpt": ("cp ring x tp + sp",),
    "thirds": ("fsdp x tp + sp",),
    "mixtral": (
        "ep x fsdp x tp + sp", "pp x ep", "ep x cp", "ep x fsdp, experts permuted", "ep, experts with replicas",
    ),
    "qwen": ("ep x hsdp",),
    "mla": ("fsdp x tp + sp",),
    "resnet": ("fsdp x tp + sp",),
    "vit": ("fsdp x tp + sp",),
    "hf llama": ("fsdp x tp + sp",),
}  # fmt: skip
EIGHT = {
    "gqa": (
        "pp x fsdp x tp + sp, 1f1b", "pp x fsdp x tp + sp, zb-v", "pp x fsdp x tp + sp, interleaved-1f1b",
        "pp x cp ulysses x tp + sp",
    ),
    "mixtral": ("pp x ep x fsdp x tp + sp",),
}  # fmt: skip

UNEVEN = (
    Case("gqa", FSDP_TP, {"vocab_size": 51, "hidden_dim": 26}),
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


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be laid out over cp 3"):
        compare(3, [Case("gqa", {"cp": 3})])
