"""Runs in the planner's terms: what follows from what the source states, and what is assumed of the rest."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from planner.plan import Candidate
from planner.validation.cases import CannotPriceError
from planner.validation.layout import layout_of
from tests.planner.validation.rows import case

SIZES = {
    "layers": 8, "hidden": 256, "heads": 8, "vocab": 1024, "micro_batch": 1, "recompute": "none", "sp": False,
    "zero_stage": 0, "precision": "bf16", "gpus_per_node": 8, "ffn": 1024, "gated_mlp": False, "tied_embeddings": True,
}  # fmt: skip


def laid_out(**fields: Any) -> Candidate:
    _, candidate, *_ = layout_of(case(**SIZES | fields))
    return candidate


def layers(**fields: Any) -> tuple[int, ...]:
    """Blocks of every stage."""
    setting, _, cuts, _ = layout_of(case(**SIZES | fields))
    blocks = [bool(segment.prefix) for segment in setting.graph.segments]
    return tuple(sum(blocks[a:b]) for a, b in pairwise(cuts))


def test_what_is_left_of_the_devices_is_data_parallel() -> None:
    found = laid_out(tp=2, pp=2, global_batch=64, micro_batch=4)
    assert (found.dp_replicate, found.dp_shard, found.num_microbatches) == (2, 1, 8)
    assert found.num_devices == 8


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"zero_stage": 0}, (0, 8, 1)),
        ({"zero_stage": 1}, (1, 1, 8)),
        ({"zero_stage": 3, "shard_size": 4}, (3, 2, 4)),
        ({"zero_stage": 3, "shard_size": 3}, (3, 1, 8)),
        ({"zero_stage": 1, "tp": 8}, (0, 1, 1)),
        ({"zero_stage": None, "sharding": "fsdp", "framework": "torchtitan"}, (3, 1, 8)),
    ],
    ids=["none", "all", "in fours", "three do not divide", "nobody to share with", "as the framework does"],
)
def test_who_shares_the_state(fields: dict[str, Any], expected: tuple[int, int, int]) -> None:
    found = laid_out(**fields)
    assert (found.zero_stage, found.dp_replicate, found.dp_shard) == expected


def test_what_the_source_leaves_open_is_said() -> None:
    open_ = {"micro_batch": None, "num_microbatches": 4, "recompute": None, "sp": None, "framework": "nemo", "tp": 2}
    _, found, _, assumed = layout_of(case(**SIZES | open_))
    assert (found.microbatch_size, found.recompute, found.sequence_parallel) == (4, "none", True)
    assert [text for text in assumed if "not stated" in text] == [
        "microbatch not stated: 4",
        "recomputation not stated: none, the default of the framework",
        "sequence parallelism not stated: on, the framework's recipes have it with tp",
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"recompute": "selective"}, ("attention", None)),
        ({"recompute": "selective", "framework": "torchtitan"}, ("half", None)),
        ({"recompute": "selective", "recompute_modules": ("moe_act",)}, ("activations", None)),
        ({"recompute": "selective", "recompute_modules": ("moe", "moe_act")}, ("experts", None)),
        ({"recompute": "full", "recompute_layers": 2}, ("full", 2)),
        ({"recompute": "full", "recompute_layers": 0}, ("none", None)),
    ],
)
def test_what_is_computed_again(fields: dict[str, Any], expected: tuple[str, int | None]) -> None:
    found = laid_out(**fields)
    assert (found.recompute, found.recomputed_blocks) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pp": 4}, (2, 2, 2, 2)),
        ({"pp": 2, "vpp": 2}, (2, 2, 2, 2)),
        ({"pp": 4, "stage_layers": (1, 2, 3, 2)}, (1, 2, 3, 2)),
        ({"pp": 4, "stage_layers": (2, 3, 3, 2)}, (1, 3, 3, 1)),
        ({"pp": 4, "layers": 10}, (2, 3, 3, 2)),
        ({"pp": 4, "layers": 10, "framework": "gpt-neox"}, (3, 3, 3, 1)),
        ({"pp": 4, "layers": 2}, (0, 1, 1, 0)),
    ],
    ids=["even", "chunks", "stated", "embedding and head counted", "more in the middle",
         "DeepSpeed's fewer at the end", "embedding and head alone"],
)  # fmt: skip
def test_blocks_of_every_stage(fields: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert layers(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpus": None}, "does not state gpus"),
        ({"tp": 3}, "8 devices are no multiple of tp 3"),
        ({"global_batch": 12}, "a batch of 12 is no multiple of 8 data-parallel ranks"),
        ({"micro_batch": 3}, "microbatches of 3 do not divide the 8 samples of a rank"),
        ({"pp": 8, "layers": 2}, "8 stages for 2 blocks"),
    ],
)
def test_a_layout_that_does_not_add_up_is_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotPriceError, match=message):
        laid_out(**fields)
