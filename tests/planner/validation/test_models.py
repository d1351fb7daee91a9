from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from planner.capture.families import family_graph
from planner.models import DenseDecoderConfig, LatentAttentionConfig, MoEDecoderConfig, preset
from planner.validation.case_files import load_cases
from planner.validation.cases import CannotPriceError, Case
from planner.validation.models import config_of

ROWS = Path(__file__).parents[3].parent / "shared" / "validation" / "cases.json"
FIELDS = (
    "model", "layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "seq_len", "gated_mlp",
    "tied_embeddings", "experts", "topk", "moe_ffn", "shared_expert_ffn",
)  # fmt: skip

LLAMA: dict[str, Any] = {
    **dict.fromkeys(FIELDS), "model": "Llama 2 7B", "layers": 32, "hidden": 4096, "ffn": 11_008, "heads": 32,
    "vocab": 32_000, "seq_len": 4096, "gated_mlp": True,
}  # fmt: skip
GPT = LLAMA | {"model": "GPT 1.7B", "gated_mlp": False, "ffn": None, "hidden": 2304, "heads": 24, "layers": 24}
DEEPSEEK = LLAMA | {
    "model": "DeepSeek-V3 671B", "layers": 61, "hidden": 7168, "ffn": 18_432, "heads": 128, "head_dim": 56,
    "vocab": 129_280, "experts": 256, "topk": 8, "moe_ffn": 2048,
}  # fmt: skip


def config(**row: Any) -> DenseDecoderConfig | MoEDecoderConfig:
    return config_of(**row)[0]


def parameters(**row: Any) -> int:
    return family_graph(config(**row)).num_parameters


def test_published_sizes_give_the_published_models() -> None:
    assert parameters(**LLAMA) == preset("llama2-7b").published_parameters
    v3, published = config(**DEEPSEEK), preset("deepseek-v3").config
    assert isinstance(v3, MoEDecoderConfig) and isinstance(published, MoEDecoderConfig)
    changed = {name for name in vars(published) if getattr(v3, name) != getattr(published, name)}
    assert changed == {"max_seq_len", "norm_eps"}


def test_a_gated_network_goes_with_rotary_positions_and_a_plain_one_with_learned() -> None:
    gated, plain = config(**LLAMA), config(**GPT)
    assert (gated.activation, gated.norm, gated.positions, gated.bias) == ("swiglu", "rms", "rotary", False)
    assert (plain.activation, plain.norm, plain.positions, plain.bias) == ("gelu_tanh", "layer", "learned", True)
    assert (plain.tied_embedding, gated.tied_embedding) == (True, False)
    assert (plain.max_seq_len, plain.hidden_dim, plain.head_dim) == (4096, 4 * 2304, 96)


@pytest.mark.parametrize(
    ("model", "row", "expected"),
    [
        ("Bloom 176B", GPT, {"positions": "none", "embedding_norm": True, "bias": True}),
        ("MPT-7b", GPT, {"positions": "learned", "bias": True}),
        ("nemotron4 15b", GPT, {"positions": "rotary", "bias": False, "norm": "layer"}),
        ("Qwen3-8B", LLAMA, {"qk_norm": True}),
        ("qwen2-0.5b", LLAMA | {"hidden": 896, "heads": 14}, {"tied_embedding": True}),
        ("Aquila 7B", LLAMA | {"vocab": None}, {"vocab_size": 100_008}),
    ],
)
def test_families_that_differ(model: str, row: dict[str, Any], expected: dict[str, Any]) -> None:
    found = config(**row | {"model": model})
    assert {name: getattr(found, name) for name in expected} == expected


def test_deepseek_v2_and_its_lite_model() -> None:
    sizes = DEEPSEEK | {"layers": 4, "experts": 160, "topk": 6, "moe_ffn": 1536}
    v2 = config(**sizes | {"model": "DeepSeek-V2 (4 layers)"})
    lite = config(**sizes | {"model": "DeepSeek-V2-Lite", "experts": 64, "shared_expert_ffn": 1000})
    assert isinstance(v2, MoEDecoderConfig) and isinstance(lite, MoEDecoderConfig)
    shape = {"kv_rank": 512, "rope_head_dim": 64, "v_head_dim": 128}
    assert v2.latent_attention == LatentAttentionConfig(q_rank=1536, **shape)
    assert lite.latent_attention == LatentAttentionConfig(q_rank=None, **shape)
    assert (v2.head_dim, v2.num_dense_layers, v2.shared_hidden_dim) == (192, 1, 2 * 1536)
    assert (v2.score, v2.num_groups, v2.top_groups, lite.num_groups) == ("softmax", 8, 3, 1)
    assert lite.shared_hidden_dim == 1000


def test_says_what_it_assumed() -> None:
    _, assumed = config_of(**GPT | {"model": "GPT 4 experts", "vocab": None, "experts": 4, "topk": 2})
    assert assumed == (
        "kv_heads 24: as many as heads",
        "ffn 9,216: four times the width",
        "LayerNorm, learned positions and biases, as models with plain networks have",
        "vocab 50,257: its family's tokenizer",
        "embedding and output share their weight, as its family has",
        "moe_ffn 9,216: as wide as the dense network",
    )


@pytest.mark.parametrize("field", ["layers", "hidden", "ffn", "heads", "vocab", "seq_len", "gated_mlp"])
def test_names_the_field_that_is_missing(field: str) -> None:
    with pytest.raises(CannotPriceError, match=f"Llama 2 7B: field '{field}' is missing"):
        config(**LLAMA | {field: None})


def test_names_the_missing_number_of_experts_per_token() -> None:
    with pytest.raises(CannotPriceError, match="field 'topk' is missing"):
        config(**LLAMA | {"experts": 8})


def test_heads_must_divide_the_width_that_is_to_say_their_own() -> None:
    with pytest.raises(CannotPriceError, match="field 'head_dim' is missing, and 31 heads do not divide 4096"):
        config(**LLAMA | {"heads": 31})


@pytest.fixture(scope="module")
def scored() -> list[Case]:
    if not ROWS.exists():
        pytest.skip(f"no file of measured rows beside the repository: {ROWS.name}")
    return [case for case in load_cases([ROWS]) if case.scored]


def test_every_scored_row_has_the_parameters_that_it_states(scored: list[Case]) -> None:
    assert scored
    for case in scored:
        count = parameters(**{field: getattr(case, field) for field in FIELDS})
        if case.params_b is not None:
            assert count == pytest.approx(case.params_b * 1e9, rel=0.03), case.id
