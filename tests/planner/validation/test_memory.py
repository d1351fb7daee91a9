"""Memory as counters show it: by hand, and against all published rows that print it."""

from __future__ import annotations

from functools import cache

import pytest

from costmodels.units import GIB
from planner.validation import memory
from planner.validation.case_files import load_cases
from planner.validation.memory import counter_bytes, default_zero_stage, least_driver_bytes, recipe_of
from planner.validation.outcomes import Outcome, price_all
from planner.validation.pricing import price
from planner.validation.statistics import accuracies, feasibility
from tests.planner.validation.rows import case, published

LARGEST_MEDIAN = 0.08
OUTSIDE = 4.2 * GIB


def test_allocated_is_the_tensors() -> None:
    assert counter_bytes(case(memory_kind="allocated"), 50 * GIB, 80 * GIB) == 50 * GIB


def test_reserved_adds_what_the_allocator_keeps() -> None:
    assert counter_bytes(case(memory_kind="reserved"), 50 * GIB, 80 * GIB) == pytest.approx(1.12 * 50 * GIB)


@pytest.mark.parametrize("kind", ["nvidia-smi", "unspecified", None])
def test_the_driver_adds_contexts_too(kind: str | None) -> None:
    found = counter_bytes(case(memory_kind=kind), 50 * GIB, 80 * GIB)
    assert found == pytest.approx(1.12 * 50 * GIB + OUTSIDE, rel=1e-6)


def test_deepspeed_leaves_more_in_pieces() -> None:
    row = case(memory_kind="nvidia-smi", framework="megatron-deepspeed")
    assert counter_bytes(row, 50 * GIB, 80 * GIB) == pytest.approx(1.25 * 50 * GIB + OUTSIDE, rel=1e-6)


def test_no_counter_shows_more_than_the_device_has_nor_less_than_the_tensors() -> None:
    driver, reserved = case(memory_kind="nvidia-smi"), case(memory_kind="reserved")
    assert counter_bytes(driver, 75 * GIB, 80 * GIB) == 80 * GIB
    assert counter_bytes(reserved, 75 * GIB, 80 * GIB) == pytest.approx(80 * GIB - OUTSIDE, rel=1e-6)
    assert counter_bytes(driver, 90 * GIB, 80 * GIB) == 90 * GIB


def test_what_a_device_must_have_leaves_out_what_the_allocator_can_return() -> None:
    assert least_driver_bytes(case(), 50 * GIB) == pytest.approx(1.02 * 50 * GIB + OUTSIDE, rel=1e-6)
    assert least_driver_bytes(case(framework="torchtitan"), 50 * GIB) < least_driver_bytes(case(), 50 * GIB)
    assert least_driver_bytes(case(hardware="Ascend-910B (8 NPUs)"), 50 * GIB) < least_driver_bytes(case(), 50 * GIB)


@pytest.mark.parametrize(
    ("fields", "passing", "accumulated"),
    [
        ({"precision": "bf16", "pp": 8}, 2, None),
        ({"precision": "fp16", "pp": 8}, 0, None),
        ({"precision": "bf16", "pp": 1}, 0, 2),
    ],
)
def test_deepspeeds_bf16_optimizer_is_for_pipelines(
    fields: dict[str, object], passing: int, accumulated: int | None
) -> None:
    found = recipe_of(case(framework="megatron-deepspeed", **fields))
    assert (found.passing_bytes, found.accumulated_bytes) == (passing, accumulated)


def test_what_shards_the_state_where_a_source_does_not_say() -> None:
    assert default_zero_stage(case(framework="torchtitan", sharding="fsdp")) == 3
    assert default_zero_stage(case(framework="megatron-deepspeed", precision="bf16")) == 1
    assert default_zero_stage(case(framework="megatron-deepspeed", precision="fp16")) == 0
    assert default_zero_stage(case(framework="nemo")) == 1
    assert default_zero_stage(case(framework="megatron-lm")) == 0


def test_a_loss_is_compiled_in_torchtitan_since_2025() -> None:
    def logit_bytes(date: str, *, compiled: bool) -> int | None:
        return recipe_of(case(framework="torchtitan", date=date, compiled=compiled)).logit_bytes

    assert logit_bytes("2025-06", compiled=True) == 4
    assert logit_bytes("2024-12", compiled=True) is None
    assert logit_bytes("2025-06", compiled=False) is None


@cache
def outcomes() -> tuple[Outcome, ...]:
    rows = load_cases([published()])
    return price_all([row for row in rows if row.peak_memory_gib is not None or row.out_of_memory], price)


@pytest.mark.parametrize("kind", ["allocated", "reserved", "nvidia-smi", "unspecified"])
def test_published_memory_is_met(kind: str) -> None:
    scored = [found for found in outcomes() if found.case.scored and found.case.memory_kind == kind]
    found = accuracies(scored, lambda row: row.memory_kind or "", "memory")[kind]
    assert found.priced == found.rows >= 10
    assert found.median is not None
    assert found.median <= LARGEST_MEDIAN, f"{kind}: {found}"


def test_lumis_logs_are_met() -> None:
    """Tensors of a 175B model at 2 to 32 data-parallel devices: what is sharded and what is not."""
    errors = [found.memory_error for found in outcomes() if found.case.group == "lumi-megds-175B"]
    assert len(errors) == 5
    assert all(error is not None and abs(error) < 0.03 for error in errors)


def test_runs_without_memory_are_told() -> None:
    """One is not: 206B parameters of which a rank has no more than of 203B, which ran at 67 GB on the same devices."""
    found = feasibility(outcomes())
    assert found.ran_predicted == found.ran
    assert found.out_of_memory >= 6
    assert found.out_of_memory - found.out_of_memory_predicted <= 1


def test_constants_are_as_documented() -> None:
    assert memory.CONTEXT_BYTES + 3 * memory.COMMUNICATOR_BYTES == pytest.approx(OUTSIDE, rel=1e-6)
