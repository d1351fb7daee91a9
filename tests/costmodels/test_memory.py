from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.memory import OPTIMIZERS, PRECISIONS, Precision, StateBytes, optimizer_step_bytes, state_bytes
from costmodels.units import GIB

LLAMA3_8B = 8_030_261_248
LAYER = 218_112_000
"""Parameters of one Llama-3-8B layer: 4096 (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336 + 2 * 4096."""
EMBEDDING = 128_256 * 4096


def state(
    precision: str = "bf16", *, optimizer: str = "adamw", zero_stage: int, dp_shard: int, **sizes: Any
) -> StateBytes:
    given = {"numel": LLAMA3_8B, "trained_numel": LLAMA3_8B, "gathered_numel": EMBEDDING + LAYER, **sizes}
    return state_bytes(
        precision=PRECISIONS[precision],
        num_states=OPTIMIZERS[optimizer],
        zero_stage=zero_stage,
        dp_shard=dp_shard,
        **{name: np.asarray(size, dtype=np.float64) for name, size in given.items()},
    )


def total(found: StateBytes) -> float:
    return float(found.parameters + found.compute_copy + found.gradients + found.optimizer)


def test_llama_3_8b_without_sharding_takes_18_bytes_per_parameter() -> None:
    """4 (float32) + 2 (bfloat16 copy) + 4 (gradient) + 8 (two AdamW states)."""
    found = state(zero_stage=0, dp_shard=1)
    assert total(found) == 18 * LLAMA3_8B
    assert total(found) / GIB == pytest.approx(134.6, abs=0.05)
    assert total(state("fp32", zero_stage=0, dp_shard=1)) == 16 * LLAMA3_8B
    assert total(state("bf16-pure", zero_stage=0, dp_shard=1)) == 8 * LLAMA3_8B


@pytest.mark.parametrize(
    ("zero_stage", "expected"),
    [
        (1, (4 / 64, 2, 4, 8 / 64)),
        (2, (4 / 64, 2, 4 / 64, 8 / 64)),
    ],
)
def test_llama_3_8b_over_64_devices_by_hand(zero_stage: int, expected: tuple[float, ...]) -> None:
    found = state(zero_stage=zero_stage, dp_shard=64)
    parts = (found.parameters, found.compute_copy, found.gradients, found.optimizer)
    assert [float(part) / LLAMA3_8B for part in parts] == pytest.approx(list(expected))


def test_zero_3_holds_its_share_and_two_gathered_blocks() -> None:
    found = state(zero_stage=3, dp_shard=64)
    assert total(found) == pytest.approx(16 * LLAMA3_8B / 64 + 2 * (EMBEDDING + LAYER))
    assert total(found) / GIB == pytest.approx(3.25, abs=0.01)


@pytest.mark.parametrize(
    ("zero_stage", "published_gb"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)], ids=["plain", "os", "os+g", "os+g+p"]
)
def test_the_table_of_the_zero_paper(zero_stage: int, published_gb: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5e9 parameters, 64 devices, fp16 parameters and gradients (2 + 2 bytes) and
    12 bytes of optimizer states, which hold the float32 parameter there (here: ``param_bytes``)."""
    paper = replace(PRECISIONS["bf16"], param_bytes=4, copy_bytes=2, gathered_bytes=2, grad_bytes=2, state_bytes=4)
    numel = np.asarray(7.5e9)
    found = state_bytes(
        precision=paper,
        num_states=2,
        zero_stage=zero_stage,
        dp_shard=64,
        numel=numel,
        trained_numel=numel,
        gathered_numel=np.asarray(0.0),
    )
    # Under stage 3 the paper shards the fp16 copy too; fully_shard makes it as it gathers, and keeps none.
    kept_copy = 2 * 7.5e9 / 64 if zero_stage == 3 else 0.0
    assert (total(found) + kept_copy) / 1e9 == pytest.approx(published_gb, abs=0.06)


@pytest.mark.parametrize(("optimizer", "states"), [("adamw", 2), ("adam", 2), ("sgd", 0), ("sgd-momentum", 1)])
def test_optimizer_states_as_torch_keeps_them(optimizer: str, states: int) -> None:
    import torch

    made = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
        "sgd-momentum": lambda p: torch.optim.SGD(p, momentum=0.9),
    }[optimizer]
    param = torch.nn.Parameter(torch.ones(1000))
    step = made([param])
    param.grad = torch.ones(1000)
    step.step()
    kept = sum(t.numel() for t in step.state[param].values() if isinstance(t, torch.Tensor) and t.numel() > 1)
    assert kept == OPTIMIZERS[optimizer] * 1000 == states * 1000
    assert float(state("fp32", optimizer=optimizer, zero_stage=0, dp_shard=1).optimizer) == 4 * states * LLAMA3_8B


@given(
    st.sampled_from(list(PRECISIONS.values())),
    st.sampled_from(list(OPTIMIZERS.values())),
    st.integers(1, 10**9),
    st.integers(2, 1024),
)
def test_more_sharding_never_takes_more(precision: Precision, num_states: int, numel: int, dp_shard: int) -> None:
    def bytes_at(zero_stage: int, dp_shard: int, gathered: float) -> float:
        return total(
            state_bytes(
                precision=precision,
                num_states=num_states,
                zero_stage=zero_stage,
                dp_shard=dp_shard,
                numel=np.asarray(float(numel)),
                trained_numel=np.asarray(float(numel)),
                gathered_numel=np.asarray(gathered),
            )
        )

    by_stage = [bytes_at(stage, dp_shard, numel / 2) for stage in (1, 2, 3)]
    assert by_stage == sorted(by_stage, reverse=True)
    for stage in (1, 2, 3):
        assert bytes_at(stage, 2 * dp_shard, numel / 2) <= bytes_at(stage, dp_shard, numel / 2)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_frozen_parameters_have_neither_gradients_nor_states(zero_stage: int) -> None:
    frozen = state(zero_stage=zero_stage, dp_shard=8, trained_numel=0)
    assert float(frozen.gradients) == float(frozen.optimizer) == 0.0
    assert float(frozen.parameters) == float(state(zero_stage=zero_stage, dp_shard=8).parameters)


def test_one_entry_per_stage() -> None:
    found = state(zero_stage=2, dp_shard=4, numel=[1.0, 2.0], trained_numel=[1.0, 0.0], gathered_numel=[1.0, 1.0])
    assert found.parameters.tolist() == [1.0, 2.0]
    assert found.gradients.tolist() == [1.0, 0.0]
    assert found.optimizer.tolist() == [2.0, 0.0]


def test_an_adamw_step_reads_and_writes_28_bytes_per_parameter() -> None:
    """Read parameter, gradient, two states; write parameter, two states: 7 floats."""
    assert optimizer_step_bytes(precision=PRECISIONS["fp32"], num_states=2, numel=1.0) == 28
    assert optimizer_step_bytes(precision=PRECISIONS["bf16-pure"], num_states=0, numel=10.0) == 60
