from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import prod
from typing import Any

import pytest

from costmodels import communication, compute
from hardware_profiles.topology import group
from planner import ops
from planner.execution import EAGER, Execution
from planner.layouts.tensor_parallel import analyse
from planner.ops import Gemm
from planner.solvers.experts import Experts, crossing_bytes, dispatch_s, exchanged, find_experts, one_by_one
from planner.solvers.local_shapes import local_shapes
from planner.solvers.prices import BlockPrice, price_block
from tests.planner.layouts.small import graph
from tests.planner.solvers.small import setting

CLUSTER = setting().cluster
"""Two nodes of four devices."""
DIM, HIDDEN, EXPERTS, TOP_K = 32, 16, 4, 2
TOKENS = 2 * 64
TOKEN_BYTES = TOKENS * DIM * 2
BLOCK = graph("qwen").blocks[1]


def experts_of(family: str = "qwen") -> Experts:
    found = find_experts(next(block for block in reversed(graph(family).blocks) if find_experts(block)))
    assert found is not None
    return found


def price(tp: int = 1, *, execution: Execution = EAGER, **changes: Any) -> BlockPrice:
    trained = {fqn for fqn, _ in BLOCK.params}
    return price_block(
        BLOCK, analyse(BLOCK), CLUSTER, tp=tp, sequence_parallel=tp > 1, batch=2, seq_len=64, recomputable=True,
        trained=trained, execution=execution, **changes,
    )  # fmt: skip


def test_the_routed_part_is_router_permutations_and_experts() -> None:
    found = experts_of()
    assert (found.num_experts, found.top_k, found.module) == (EXPERTS, TOP_K, "moe.experts")
    assert found.params == {"moe.experts.w1", "moe.experts.w2", "moe.experts.w3"}
    names = {BLOCK.ops[i].name for i in found.region}
    assert {"topk", "index_select", "_grouped_mm"} <= names
    assert not {"attention", "rms_norm"} & names


def test_a_router_that_chooses_groups_first_has_the_last_choice() -> None:
    found = experts_of("mla")
    assert (found.num_experts, found.top_k) == (8, 2)
    block = next(block for block in graph("mla").blocks if find_experts(block))
    assert not any("shared" in block.ops[i].fqn for i in found.region)


def test_blocks_without_grouped_products_have_no_routed_part() -> None:
    assert find_experts(graph("gqa").blocks[1]) is None


@pytest.mark.parametrize(
    ("size", "stride", "each", "each_own", "once", "once_own"),
    [
        (2, 1, [1], 1, [5 / 6], 5 / 6),  # each device has two of four experts: 5 of 6 pairs have one of them
        (4, 1, [3 / 2], 1 / 2, [3 / 2], 1 / 2),  # each has one: as often once as per expert
        (4, 2, [1 / 2, 1], 1 / 2, [1, 5 / 6], 1 / 2),  # two nodes of two: what arrives for the neighbour is passed on
    ],
)
def test_bytes_of_dispatch_and_combine_by_hand(
    size: int, stride: int, each: list[float], each_own: float, once: list[float], once_own: float
) -> None:
    ranks = group(CLUSTER, size=size, stride=stride)
    for expected, own, flag in ((each, each_own, False), (once, once_own, True)):
        crossing, kept = crossing_bytes(experts_of(), ranks, TOKEN_BYTES, once=flag)
        assert crossing == pytest.approx([share * TOKEN_BYTES for share in expected])
        assert kept == pytest.approx(own * TOKEN_BYTES)


@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 2), (8, 3), (16, 2), (8, 1)])
def test_tokens_sent_once_are_counted_over_all_choices(num_experts: int, top_k: int) -> None:
    """Device 0 of two nodes of two sends to nodes and passes on what its counterpart of the other node sends."""
    experts = replace(experts_of(), num_experts=num_experts, top_k=top_k)
    held = num_experts // 4
    choices = list(combinations(range(num_experts), top_k))
    own = inside = outside = 0
    for chosen in choices:
        devices = {expert // held for expert in chosen}
        own += 0 in devices
        outside += bool(devices & {2, 3})
        inside += (1 in devices) + (3 in devices)  # by symmetry of the nodes, what device 2 sends to device 1
    crossing, kept = crossing_bytes(experts, group(CLUSTER, size=4, stride=2), 1.0, once=True)
    assert crossing == pytest.approx([inside / len(choices), outside / len(choices)])
    assert kept == pytest.approx(own / len(choices))


def test_an_all_to_all_moves_a_row_per_token_and_expert() -> None:
    ranks = group(CLUSTER, size=8, stride=1)
    experts = replace(experts_of(), num_experts=8)
    plain_s = communication.all_to_all_s(ranks, TOP_K * TOKEN_BYTES)
    assert dispatch_s(experts, ranks, TOKEN_BYTES, once=False) == pytest.approx(plain_s)
    assert dispatch_s(replace(experts, top_k=8), ranks, 1e9, once=True) < dispatch_s(
        replace(experts, top_k=8), ranks, 1e9, once=False
    )


@pytest.mark.parametrize("ep", [1, 2, 4])
def test_devices_share_experts_and_conserve_their_flop(ep: int) -> None:
    """Each has ``1 / ep`` of the experts, with the rows of ``ep`` devices; in sum what they do without dispatch."""
    shapes = local_shapes(BLOCK, analyse(BLOCK), tp=1, sequence_parallel=False, batch=2, seq_len=64).routed
    for op in BLOCK.ops:
        if op.name not in ops.GROUPED:
            continue
        (product,) = ops.gemms(op, shapes)
        tokens = all(len(shapes[v]) == 2 for v in op.inputs[:2])
        local = exchanged(product, ep, contracts_tokens=tokens)
        assert local.groups == EXPERTS // ep
        assert (local.k if tokens else local.m) == ep * TOKENS * TOP_K // EXPERTS
        assert ep * local.flop == ep * product.flop


def test_a_device_holds_its_share_of_the_experts_alone() -> None:
    whole, shared = price(), price(ep=2)
    assert whole.expert_numel() == 0
    assert shared.expert_numel() == 3 * EXPERTS * DIM * HIDDEN // 2
    assert whole.numel() - shared.numel() == shared.expert_numel()
    for fqn, shape in whole.param_shapes.items():
        if fqn not in shared.expert_params:
            assert shared.param_shapes[fqn] == shape


def test_experts_are_whole_where_tp_divides_the_rest() -> None:
    assert price(2, ep=2).expert_numel() == price(ep=2).expert_numel()


def test_one_device_dispatches_nothing() -> None:
    for execution in (replace(EAGER, dispatch_once=True), replace(EAGER, overlap_experts=True)):
        assert price(execution=execution) == price()
    assert price().forward.experts == price().backward.experts == 0


def test_dispatch_and_combine_are_paid_in_both_passes() -> None:
    ranks, found = group(CLUSTER, size=2, stride=1), price(ep=2)
    expected = 2 * dispatch_s(experts_of(), ranks, TOKEN_BYTES, once=False)
    assert found.forward.experts == pytest.approx(expected)
    assert found.backward.experts == pytest.approx(expected)
    half = price(2, ep=2)  # each of two ranks of tp dispatches its part of the tokens
    assert half.forward.experts == pytest.approx(2 * dispatch_s(experts_of(), ranks, TOKEN_BYTES / 2, once=False))


def test_another_microbatch_hides_no_more_than_it_computes() -> None:
    plain, beside = price(ep=8), price(ep=8, execution=replace(EAGER, overlap_experts=True))
    kinds = ("gemm", "attention", "memory_bound")
    busy_s = sum(getattr(p, kind) for p in (plain.forward, plain.backward) for kind in kinds)
    exposed = beside.forward.experts + beside.backward.experts
    all_s = plain.forward.experts + plain.backward.experts
    assert exposed == pytest.approx(max(0.0, all_s - busy_s))


def test_the_halves_of_a_gated_network_are_one_product_per_expert() -> None:
    up = Gemm(groups=4, m=64, n=16, k=32)
    assert one_by_one(up, 2, "forward", contracts_tokens=False) == Gemm(groups=1, m=64, n=32, k=32)
    weight = Gemm(groups=4, m=16, n=32, k=64)
    assert one_by_one(weight, 2, "backward", contracts_tokens=True) == Gemm(groups=1, m=32, n=32, k=64)
    back = Gemm(groups=4, m=64, n=32, k=16)
    assert one_by_one(back, 2, "backward", contracts_tokens=False) == Gemm(groups=1, m=64, n=32, k=32)


def test_products_one_after_another_by_hand() -> None:
    """Two local experts with 128 rows each: up and gate at once, then down; no faster than the host launches them."""
    dense = sum(
        compute.gemm_s(CLUSTER.device, "bfloat16", m=TOKENS, n=n, k=k, sustained=True)
        for n, k in ((2 * HIDDEN, DIM), (DIM, HIDDEN))
    )
    each = replace(EAGER, expert_products="each")
    without = price(ep=2).forward.gemm - _grouped_s("forward")
    assert price(ep=2, execution=each).forward.gemm - without == pytest.approx(2 * dense)
    slow = replace(each, expert_call_s=1e-3)
    assert price(ep=2, execution=slow).forward.gemm - without == pytest.approx(2 * 2 * 1e-3)


def _grouped_s(phase: str) -> float:
    shapes = local_shapes(BLOCK, analyse(BLOCK), tp=1, sequence_parallel=False, batch=2, seq_len=64).routed
    seconds = 0.0
    for op in BLOCK.ops:
        if op.phase == phase and op.name in ops.GROUPED:
            g = exchanged(ops.gemms(op, shapes)[0], 2, contracts_tokens=phase == "backward")
            dims = {"batch": g.groups, "m": g.m, "n": g.n, "k": g.k}
            seconds += compute.gemm_s(CLUSTER.device, "bfloat16", **dims, grouped=True, sustained=True)
    return seconds


def test_a_host_that_waits_for_the_routing_is_not_ahead() -> None:
    region = [BLOCK.ops[i] for i in experts_of().region]
    waiting = replace(EAGER, host_call_s=1e-9, waits_for_routing=True)
    held = sum(op.phase == "forward" for op in region)
    assert price(execution=waiting).forward.host == pytest.approx(held * 1e-9)
    assert price(execution=replace(waiting, waits_for_routing=False)).forward.host == 0


def test_recomputing_experts_is_their_forward_pass_and_exchange_again() -> None:
    found = price(ep=2)
    again, forward = found.again["experts"], found.forward
    assert again.experts == forward.experts
    assert 0 < again.gemm < forward.gemm
    assert again.attention == 0
    assert found.saved_bytes["full"] < found.saved_bytes["experts"] < found.saved_bytes["activations"]
    assert found.saved_bytes["activations"] < found.saved_bytes["none"]
    assert prod(found.param_shapes["moe.experts.w1"]) == EXPERTS // 2 * DIM * HIDDEN
