"""What blocks keep, against formulas of the literature for a GPT layer, in half precision (Korthikanti et al. 2022)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from costmodels.compute import DTYPE_BYTES
from costmodels.memory import Recipe
from hardware_profiles.load import load_cluster
from planner.capture.families import family_graph
from planner.execution import Execution
from planner.graph import Block, ModelGraph
from planner.layouts.model import analyse_model
from planner.models import DenseDecoderConfig
from planner.solvers.prices import BlockPrice, price_block
from planner.solvers.saved import num_logits

S, B, H, A, L, V = 1024, 2, 2048, 16, 2, 50_000
SBH = S * B * H
MEGATRON = Execution(attention="unfused", dropout=True, fused_pointwise=True, recipe=Recipe(regather=True))
NO_DROPOUT = replace(MEGATRON, dropout=False)
FLASH = replace(MEGATRON, attention="flash2", dropout=False)


@pytest.fixture(scope="module")
def gpt() -> ModelGraph:
    return family_graph(
        DenseDecoderConfig(
            vocab_size=V, max_seq_len=S, dim=H, num_layers=L, num_heads=A, num_kv_heads=A, head_dim=H // A,
            hidden_dim=4 * H, activation="gelu", norm="layer", norm_eps=1e-5, positions="learned", bias=True,
            fused_qkv=True, tied_embedding=True,
        )
    )  # fmt: skip


def layer(
    graph: ModelGraph, execution: Execution, *, tp: int = 1, sequence_parallel: bool = False, block: int | None = None
) -> BlockPrice:
    index = next(s.block for s in graph.segments if s.prefix) if block is None else block
    return price_block(
        graph.blocks[index], analyse_model(graph).blocks[index], load_cluster("h100-sxm:1x8"), tp=tp,
        sequence_parallel=sequence_parallel, batch=B, seq_len=S, recomputable=True, trained=(), execution=execution,
    )  # fmt: skip


def head(graph: ModelGraph) -> Block:
    return graph.blocks[graph.segments[-1].block]


def test_everything_kept_is_34_sbh_and_5_as2b(gpt: ModelGraph) -> None:
    kept = layer(gpt, MEGATRON).saved_bytes
    assert kept["none"] == pytest.approx(34 * SBH + 5 * A * S * S * B, rel=0.03)
    assert kept["attention"] == pytest.approx(34 * SBH, rel=0.03)


def test_without_dropout_its_masks_are_not_there(gpt: ModelGraph) -> None:
    kept = layer(gpt, NO_DROPOUT).saved_bytes
    assert kept["none"] == pytest.approx(32 * SBH + 2 * A * S * S * B, rel=0.03)


def test_full_recomputation_keeps_the_input(gpt: ModelGraph) -> None:
    price = layer(gpt, MEGATRON)
    assert price.saved_bytes["full"] == 2 * SBH
    assert price.rematerialised_bytes("full") == price.saved_bytes["none"] - 2 * SBH


@pytest.mark.parametrize("tp", [2, 4])
def test_tensor_parallelism_divides_24_of_34_sbh(gpt: ModelGraph, tp: int) -> None:
    kept = layer(gpt, MEGATRON, tp=tp).saved_bytes["attention"]
    assert kept == pytest.approx((10 + 24 / tp) * SBH, rel=0.05)


@pytest.mark.parametrize("tp", [2, 4])
def test_with_sequence_parallelism_everything_is_divided_where_inputs_are_gathered_again(
    gpt: ModelGraph, tp: int
) -> None:
    megatron = layer(gpt, MEGATRON, tp=tp, sequence_parallel=True).saved_bytes["attention"]
    assert megatron == pytest.approx(34 * SBH / tp, rel=0.05)
    torch = layer(gpt, replace(MEGATRON, recipe=Recipe()), tp=tp, sequence_parallel=True).saved_bytes["attention"]
    assert torch - megatron == 2 * 2 * (SBH - SBH // tp), "the inputs of QKV and of the first linear are kept whole"


def test_torchtitans_policy_keeps_every_other_product_and_attention(gpt: ModelGraph) -> None:
    """Products in order: QKV, projection, up, down. Kept: the input, QKV, attention's result, up."""
    kept = layer(gpt, Execution()).saved_bytes["half"]
    assert kept == pytest.approx(2 * SBH * (1 + 3 + 1 + 4), rel=0.01)


def test_products_in_8_bits_keep_8_bits_of_what_they_alone_read(gpt: ModelGraph) -> None:
    """QKV's input, up's and down's are halved; attention's result stays for its own backward, beside a narrow copy."""
    execution = replace(FLASH, linear_dtype="float8_e4m3fn", recipe=Recipe(narrow_inputs=True))
    fewer = layer(gpt, FLASH).saved_bytes["none"] - layer(gpt, execution).saved_bytes["none"]
    assert fewer == pytest.approx(SBH * (1 + 1 + 4 - 1), rel=0.02)


def test_norms_in_torch_operations_keep_fp32_copies(gpt: ModelGraph) -> None:
    execution = replace(FLASH, recipe=Recipe(upcast_norms=True))
    more = layer(gpt, execution).saved_bytes["none"] - layer(gpt, FLASH).saved_bytes["none"]
    assert more == 2 * DTYPE_BYTES["float32"] * SBH


def test_logits_are_counted_where_the_loss_is(gpt: ModelGraph) -> None:
    assert num_logits(head(gpt), B, S) == B * S * V
    assert num_logits(gpt.blocks[gpt.segments[1].block], B, S) == 0


def test_keys_of_grouped_queries_are_not_copied_and_lie_in_one_product_with_the_queries() -> None:
    """16 heads over 4 groups: kept of attention are rotated queries and keys, and the product of all three; a trace has
    the keys' and values' copies for every head instead of the product."""
    graph = family_graph(
        DenseDecoderConfig(
            vocab_size=V, max_seq_len=S, dim=H, num_layers=L, num_heads=A, num_kv_heads=A // 4, head_dim=H // A,
            hidden_dim=4 * H, activation="swiglu", norm="rms", norm_eps=1e-5, positions="rotary",
        )
    )  # fmt: skip
    copied = layer(graph, FLASH).saved_bytes["none"]
    grouped = layer(graph, replace(FLASH, recipe=Recipe(native_groups=True))).saved_bytes["none"]
    assert copied - grouped == 2 * SBH * ((1 + 1) - (1 / 4 + (1 + 1 / 4 + 1 / 4)))
    assert grouped == pytest.approx(2 * SBH * (1 + 1 + 1 + 1 / 4 + 1.5 + 1 + 1 + 1 + 12), rel=0.01)


def test_a_fused_layer_keeps_the_sum_that_its_second_norm_reads(gpt: ModelGraph) -> None:
    """It follows from a product that nobody kept, so that no backward kernel can make it again."""
    assert layer(gpt, FLASH).saved_bytes["none"] >= 2 * SBH * (1 + 1 + 3 + 1 + 1 + 1 + 4 + 4)
