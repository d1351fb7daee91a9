"""Models by their transformers configuration; nothing is downloaded."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.capture.sources import load_model
from planner.capture.trace import trace
from planner.errors import ModelSourceError
from planner.graph import ModelGraph
from tests.planner.capture import reference

transformers = pytest.importorskip("transformers", reason="an optional dependency: pip install 'meshwright[hf]'")
logging.getLogger("transformers").setLevel(logging.ERROR)

DECODER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": DECODER | {"architectures": ["LlamaForCausalLM"], "num_key_value_heads": 2},
    "mixtral": DECODER | {"architectures": ["MixtralForCausalLM"], "num_key_value_heads": 2, "num_local_experts": 4},
    "qwen3_moe": DECODER | {"architectures": ["Qwen3MoeForCausalLM"], "num_key_value_heads": 2, "head_dim": 8,
                            "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64,
             "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0},
    "bert": DECODER | {"architectures": ["BertForMaskedLM"]},
    "vit": DECODER | {"architectures": ["ViTForImageClassification"], "image_size": 16, "patch_size": 8},
    "t5": {"architectures": ["T5ForConditionalGeneration"], "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3,
           "num_decoder_layers": 3, "num_heads": 4, "vocab_size": 64, "decoder_start_token_id": 0, "pad_token_id": 0},
}  # fmt: skip
BLOCKS = {
    "llama": ["model.layers"], "mixtral": ["model.layers"], "qwen3_moe": ["model.layers"], "gpt2": ["transformer.h"],
    "bert": ["bert.encoder.layer"], "vit": ["vit.layers"], "t5": ["encoder.block", "decoder.block"],
}  # fmt: skip


def write(folder: Path, fields: Any) -> str:
    path = folder / "config.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return f"hf:{path}"


def load(name: str, folder: Path) -> Any:
    return load_model(write(folder, CONFIGS[name] | {"model_type": name}), dtype=torch.bfloat16)


def gradients(graph: ModelGraph) -> set[str]:
    pairs = [(segment, graph.blocks[segment.block]) for segment in graph.segments]
    return {graph.canonical(segment, fqn) for segment, block in pairs for fqn, _ in block.param_grads}


@pytest.mark.parametrize("name", CONFIGS)
def test_architectures_are_traced_in_blocks(name: str, tmp_path: Path) -> None:
    source = load(name, tmp_path)
    assert {p.device.type for p in source.module.parameters()} == {"meta"}
    graph = trace(source.module, source.inputs, seq_len=16)
    assert [s.prefix for s in graph.segments if s.prefix] == [
        f"{list_}.{i}" for list_ in BLOCKS[name] for i in range(3)
    ]
    # T5's first block of either stack also computes the positions' bias, which it passes on to the others.
    assert len({s.block for s in graph.segments if s.prefix}) == (4 if name == "t5" else 1)
    assert gradients(graph) == {p.fqn for p in graph.params}
    assert graph.warnings == () and graph.fixed_seq_len is None
    crossing = [len(values) for values in graph.crossings]
    assert crossing == ([1, 2, 2, 1, 2, 3, 3, 1] if name == "t5" else [1, 1, 1, 1])


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2", "bert", "vit"])
def test_flop_is_torchs_count_of_the_eager_model(name: str, tmp_path: Path) -> None:
    source = load(name, tmp_path)
    graph = reference.at_one_point(source.module, source.inputs, 2, 16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        source.module.train().to_empty(device="cpu")
        source.module.tie_weights()
        example = {key: torch.zeros(t.shape, dtype=t.dtype) for key, t in source.inputs(2, 16).items()}
        example = {key: t.to(torch.bfloat16) if t.is_floating_point() else t for key, t in example.items()}
        # Dropout inside of attention, which transformers turns on for GPT-2 and BERT, has no fused kernel on the CPU.
        for module in source.module.modules():
            for attribute in ("attention_dropout", "dropout", "attn_dropout"):
                if isinstance(getattr(module, attribute, None), torch.nn.Dropout):
                    getattr(module, attribute).p = 0.0
        forward, backward = reference.eager_flop_of(lambda: source.module(**example).loss)
    assert reference.count_flop(graph, 2, 16) == (forward, backward)


def test_names_and_lengths(tmp_path: Path) -> None:
    (tmp_path / "tiny-llama").mkdir()
    source = load("llama", tmp_path / "tiny-llama")
    assert (source.name, source.seq_len) == ("tiny-llama", 64)
    assert load_model(f"hf:{tmp_path / 'tiny-llama'}", dtype=torch.bfloat16).name == "tiny-llama"
    assert {k: tuple(v.shape) for k, v in source.inputs(2, 5).items()} == {"input_ids": (2, 5), "labels": (2, 5)}
    assert load("t5", tmp_path).seq_len == 4096
    vit = load("vit", tmp_path)
    assert vit.seq_len == 1
    assert {k: tuple(v.shape) for k, v in vit.inputs(2, 5).items()} == {"pixel_values": (2, 3, 16, 16), "labels": (2,)}


def test_without_an_architecture_it_is_the_causal_language_model(tmp_path: Path) -> None:
    fields = {key: value for key, value in CONFIGS["llama"].items() if key != "architectures"}
    source = load_model(write(tmp_path, fields | {"model_type": "llama"}), dtype=torch.bfloat16)
    assert type(source.module).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('{"model_type":\n "llama",}', r"config.json:2: not JSON: "),
        ("[]", "field 'model_type' is missing; it names the architecture, e.g. 'llama'"),
        ({"hidden_size": 8}, "field 'model_type' is missing"),
        ({"model_type": "lama"}, r"transformers .* refuses it: .*lama"),
        (CONFIGS["llama"] | {"model_type": "llama", "hidden_size": "wide"}, r"config.json: .*transformers"),
    ],
    ids=["not JSON", "a list", "no type", "unknown type", "wrong field"],
)
def test_a_config_that_gives_no_model(tmp_path: Path, fields: Any, message: str) -> None:
    with pytest.raises(ModelSourceError, match=message):
        load_model(write(tmp_path, fields), dtype=torch.bfloat16)


def test_a_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"config.json: no such file \(hf:path/to/config.json, or the folder"):
        load_model(f"hf:{tmp_path}", dtype=torch.bfloat16)


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModelSourceError, match=r"need transformers: pip install 'meshwright\[hf\]'"):
        load("llama", tmp_path)
