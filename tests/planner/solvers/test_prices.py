from __future__ import annotations

from math import prod
from typing import Any

import pytest

from costmodels import communication, compute
from costmodels.compute import DTYPE_BYTES
from hardware_profiles.topology import group
from planner import ops
from planner.graph import Block
from planner.layouts.tensor_parallel import TensorParallel, analyse
from planner.solvers.local_shapes import local_shapes
from planner.solvers.prices import BlockPrice, price_block
from tests.planner.layouts.small import graph
from tests.planner.solvers.small import setting

CLUSTER = setting().cluster
FAMILIES = ["gqa", "gpt", "bert", "mixtral", "thirds"]


def layer(family: str) -> tuple[Block, TensorParallel]:
    block = graph(family).blocks[1]
    return block, analyse(block)


def price(family: str, tp: int = 1, *, sequence_parallel: bool = False, **changes: Any) -> BlockPrice:
    block, layout = layer(family)
    settings = {"batch": 2, "seq_len": 64, "recomputable": True, "trained": {fqn for fqn, _ in block.params}, **changes}
    return price_block(block, layout, CLUSTER, tp=tp, sequence_parallel=sequence_parallel, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_on_one_device_a_pass_is_the_sum_of_its_operations_on_whole_tensors(family: str) -> None:
    block, _ = layer(family)
    shapes = [v.shape(2, 64) for v in block.values]
    found = price(family)
    for phase, seconds in (("forward", found.forward), ("backward", found.backward)):
        gemm = moved = 0.0
        for op in block.ops:
            if op.phase == phase and not ops.is_free(op, block):
                for g in ops.gemms(op, shapes):
                    dims = {"batch": g.groups, "m": g.m, "n": g.n, "k": g.k}
                    gemm += compute.gemm_s(CLUSTER.device, "bfloat16", **dims, grouped="grouped" in op.name)
                if not ops.gemms(op, shapes) and not ops.attention(op, shapes):
                    norm = "norm" in op.name or "softmax" in op.name
                    num_bytes = ops.moved_bytes(op, block, shapes)
                    moved += compute.memory_bound_s(CLUSTER.device, num_bytes, "norm" if norm else "pointwise")
        assert (seconds.gemm, seconds.memory_bound) == pytest.approx((gemm, moved))
        assert seconds.collectives == 0
        assert seconds.attention > 0
    assert found.numel() == sum(prod(shapes[v]) for _, v in block.params)
    assert found.saved_bytes["none"] == sum(prod(shapes[v]) * DTYPE_BYTES[block.values[v].dtype] for v in block.saved)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tp", [2, 4])
def test_ranks_share_the_flop_of_sharded_operations_exactly(family: str, tp: int) -> None:
    block, layout = layer(family)
    whole = local_shapes(block, layout, tp=1, sequence_parallel=False, batch=2, seq_len=64).inside
    local = local_shapes(block, layout, tp=tp, sequence_parallel=False, batch=2, seq_len=64).inside
    shared = 0
    for i, op in enumerate(block.ops):
        of_one, of_all = ops.flop(op, local), ops.flop(op, whole)
        assert of_one * (tp if i in layout.sharded_ops else 1) == of_all
        shared += of_all if i in layout.sharded_ops else 0
    assert shared > 0.9 * sum(ops.flop(op, whole) for op in block.ops)


def test_collectives_of_a_llama_layer_by_hand() -> None:
    """Megatron: two all-reduces of [batch, seq, dim] forward and two backward; with sequence parallelism each is a
    reduce-scatter and an all-gather."""
    ranks, num_bytes = group(CLUSTER, size=2, stride=1), 2 * 64 * 32 * 2
    plain = price("gqa", 2)
    assert plain.forward.collectives == pytest.approx(2 * communication.all_reduce_s(ranks, num_bytes))
    assert plain.backward.collectives == pytest.approx(2 * communication.all_reduce_s(ranks, num_bytes))
    along = price("gqa", 2, sequence_parallel=True)
    both = communication.all_gather_s(ranks, num_bytes) + communication.reduce_scatter_s(ranks, num_bytes)
    assert along.forward.collectives == pytest.approx(2 * both)
    assert along.backward.collectives == pytest.approx(2 * both)


def test_collectives_of_the_loss_are_three_numbers_per_row() -> None:
    block = graph("gqa").blocks[2]
    found = price_block(
        block, analyse(block), CLUSTER, tp=2, sequence_parallel=False, batch=2, seq_len=64, recomputable=False,
        trained=set(),
    )  # fmt: skip
    ranks = group(CLUSTER, size=2, stride=1)
    assert found.forward.collectives == pytest.approx(3 * communication.all_reduce_s(ranks, 2 * 64 * 4))
    assert found.backward.collectives == pytest.approx(communication.all_reduce_s(ranks, 2 * 64 * 32 * 2))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("tp", "along"), [(1, False), (2, False), (2, True)])
def test_recomputing_more_keeps_less_and_what_is_gone_comes_back(family: str, tp: int, along: bool) -> None:
    found = price(family, tp, sequence_parallel=along)
    kept = found.saved_bytes
    assert kept["full"] <= kept["selective"] <= kept["none"]
    assert found.rematerialised_bytes("none") == 0
    assert found.rematerialised_bytes("full") + kept["full"] == kept["none"]
    again = [found.again[policy].compute for policy in ("none", "selective", "full")]
    assert again == sorted(again)
    assert again[0] == 0
    assert again[2] <= found.forward.compute
    assert again[1] <= found.forward.memory_bound
    assert found.again["selective"].collectives <= found.again["full"].collectives <= found.forward.collectives


def test_full_recomputation_stops_where_the_last_saved_tensor_is_rebuilt() -> None:
    """A Llama layer ends with the MLP's second product, whose result nothing saves; torch.utils.checkpoint skips it."""
    found = price("gqa")
    block = graph("gqa").blocks[1]
    (last,) = [op for op in block.ops if op.phase == "forward" and op.fqn == "feed_forward.w2" and op.name == "mm"]
    (product,) = ops.gemms(last, [v.shape(2, 64) for v in block.values])
    seconds = compute.gemm_s(CLUSTER.device, "bfloat16", m=product.m, n=product.n, k=product.k)
    assert found.forward.gemm - found.again["full"].gemm == pytest.approx(seconds)
    assert found.again["full"].attention == found.forward.attention


def test_full_recomputation_keeps_the_input_alone() -> None:
    assert price("gqa").saved_bytes["full"] == 2 * 64 * 32 * 2
    assert price("gqa", 2, sequence_parallel=True).saved_bytes["full"] == 64 * 32 * 2


def test_blocks_that_are_not_repeated_are_never_recomputed() -> None:
    """Their activations are kept whatever the policy, so no time is charged for making them again."""
    found = price("gqa", recomputable=False)
    for policy in ("none", "selective", "full"):
        assert found.saved_bytes[policy] == found.saved_bytes["none"]
        assert found.again[policy].compute == found.again[policy].collectives == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_sequence_parallelism_keeps_less_for_no_more_compute(family: str) -> None:
    plain, along = price(family, 2), price(family, 2, sequence_parallel=True)
    assert along.saved_bytes["none"] < plain.saved_bytes["none"]
    assert along.transient_bytes <= plain.transient_bytes
    assert along.forward.memory_bound < plain.forward.memory_bound
    assert along.forward.gemm <= plain.forward.gemm
    assert along.numel() == plain.numel() < price(family).numel()


@pytest.mark.parametrize("family", ["gqa", "gpt", "bert"])
def test_under_sequence_parallelism_no_large_activation_is_whole_but_gathered_entries(family: str) -> None:
    """Of a dense layer's values that grow with the tokens, only entries (and views of them) have all of them."""
    block, layout = layer(family)
    shapes = local_shapes(block, layout, tp=2, sequence_parallel=True, batch=2, seq_len=64)
    entries = {block.values[v].storage for v in layout.entries}
    params = {block.values[v].storage for _, v in block.params}
    made = {v for op in block.ops for v in op.outputs} | set(block.inputs)
    for v, value in enumerate(block.values):
        tokens = any(dim.slope and dim.per_batch for dim in value.dims) or (
            any(dim.slope for dim in value.dims) and any(dim.per_batch for dim in value.dims)
        )
        if v in made and tokens and value.storage not in entries | params:
            assert prod(shapes.stored[v]) * 2 == prod(value.shape(2, 64)), f"value {v}: {value}"


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_that_stay_whole_are_reduced_over_tp_only_along_the_sequence(family: str) -> None:
    block, layout = layer(family)
    assert price(family, 2).replicated_numel == 0
    whole = sum(prod(block.values[v].shape(1, 1)) for fqn, v in block.params if fqn not in layout.params)
    assert price(family, 2, sequence_parallel=True).replicated_numel == whole > 0


def test_frozen_parameters_are_held_and_not_trained() -> None:
    found = price("gqa", trained={"attention.wq.weight"})
    assert found.trained_numel() == 32 * 32
    assert found.numel() > 5 * found.trained_numel()
