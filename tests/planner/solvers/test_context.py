from __future__ import annotations

from typing import Any

import pytest

from costmodels import communication
from hardware_profiles.topology import group
from planner.layouts.tensor_parallel import analyse
from planner.solvers.context import ContextKind, context_s
from planner.solvers.prices import BlockPrice, price_block
from tests.planner.layouts.small import graph
from tests.planner.solvers.small import setting

CLUSTER = setting().cluster
RANKS = group(CLUSTER, size=4, stride=1)
KINDS: tuple[ContextKind, ...] = ("all_gather", "ring", "ulysses")
KV, Q = 3e6, 1.2e7


def seconds(kind: ContextKind, *, attention_s: float = 0.0, backward: bool = False) -> float:
    return context_s(kind, RANKS, kv_bytes=KV, q_bytes=Q, attention_s=attention_s, backward=backward)


def price(cp: int, context: ContextKind) -> BlockPrice:
    block: Any = graph("gqa").blocks[1]
    trained = {fqn for fqn, _ in block.params}
    return price_block(
        block, analyse(block), CLUSTER, tp=1, sequence_parallel=False, batch=2, seq_len=64, recomputable=True,
        trained=trained, cp=cp, context=context,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_one_device_communicates_nothing(kind: ContextKind) -> None:
    alone = group(CLUSTER, size=1, stride=1)
    assert context_s(kind, alone, kv_bytes=KV, q_bytes=Q, attention_s=1.0, backward=True) == 0


def test_keys_and_values_are_gathered_and_their_gradients_scattered() -> None:
    gather_s = communication.all_gather_s(RANKS, 4 * KV)
    assert seconds("all_gather") == pytest.approx(gather_s)
    scatter_s = communication.reduce_scatter_s(RANKS, 4 * KV)
    assert seconds("all_gather", backward=True) == pytest.approx(gather_s + scatter_s)


def test_a_ring_moves_what_a_gather_does_in_steps() -> None:
    assert seconds("ring") == pytest.approx(seconds("all_gather"))
    assert seconds("ring", backward=True) == pytest.approx(2 * seconds("ring"))


def test_a_ring_hides_each_step_behind_its_share_of_the_attention() -> None:
    step_s = seconds("ring") / 3
    assert seconds("ring", attention_s=2 * step_s) == pytest.approx(3 * (step_s - 2 * step_s / 4))
    assert seconds("ring", attention_s=4.01 * step_s) == 0
    assert seconds("ring", attention_s=4.01 * step_s, backward=True) > 0


@pytest.mark.parametrize("backward", [False, True])
def test_ulysses_exchanges_queries_result_keys_and_values(backward: bool) -> None:
    expected = 2 * communication.all_to_all_s(RANKS, Q) + 2 * communication.all_to_all_s(RANKS, KV / 2)
    assert seconds("ulysses", attention_s=1.0, backward=backward) == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_sends_grouped_heads_once(kind: ContextKind) -> None:
    """8 heads and 4 grouped ones of 4 elements, 2 samples of 64 tokens on 4 devices, in bfloat16."""
    tokens = 2 * 64 // 4
    found = price(4, kind)
    for phase, backward in ((found.forward, False), (found.backward, True)):
        expected = context_s(
            kind, RANKS, kv_bytes=2 * tokens * 4 * 4 * 2, q_bytes=tokens * 8 * 4 * 2, attention_s=phase.attention,
            backward=backward,
        )  # fmt: skip
        assert phase.context == pytest.approx(expected)
    assert price(1, kind).forward.context == 0
