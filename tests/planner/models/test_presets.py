from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from planner import models
from planner.models.presets import PRESETS, Preset


def count(name: str) -> int:
    with torch.device("meta"):
        model, _ = models.build(name)
    return sum(parameter.numel() for parameter in model.parameters())


def round_to_digits(value: int, digits: int) -> int:
    return round(value, digits - 1 - math.floor(math.log10(value)))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_parameter_count_is_the_published_one(preset: Preset) -> None:
    built = count(preset.name)
    if preset.published_digits is not None:
        built = round_to_digits(built, preset.published_digits)
    assert built == preset.published_parameters


def test_llama3_8b_count_by_hand() -> None:
    dim, hidden, vocab, kv = 4096, 14_336, 128_256, 8 * 128
    attention = dim * dim + 2 * dim * kv + dim * dim
    layer = attention + 3 * dim * hidden + 2 * dim
    assert count("llama3-8b") == 32 * layer + 2 * vocab * dim + dim


def test_gpt2_count_by_hand() -> None:
    dim = 768
    matrices = dim * 3 * dim + dim * dim + 2 * dim * 4 * dim
    biases = 3 * dim + dim + 4 * dim + dim
    layer = matrices + biases + 2 * (2 * dim)
    assert count("gpt2") == 12 * layer + 50_257 * dim + 1024 * dim + 2 * dim


def test_mixtral_count_by_hand() -> None:
    dim, hidden, vocab, kv, experts = 4096, 14_336, 32_000, 8 * 128, 8
    attention = dim * dim + 2 * dim * kv + dim * dim
    layer = attention + experts * 3 * dim * hidden + experts * dim + 2 * dim
    assert count("mixtral-8x7b") == 32 * layer + 2 * vocab * dim + dim


def test_deepseek_v3_count_by_hand() -> None:
    dim, heads = 7168, 128
    attention = (
        dim * 1536 + 1536 + 1536 * heads * 192
        + dim * (512 + 64) + 512 + 512 * heads * (128 + 128)
        + heads * 128 * dim
    )  # fmt: skip
    dense = attention + 3 * dim * 18_432 + 2 * dim
    sparse = attention + (256 + 1) * 3 * dim * 2048 + 256 * dim + 2 * dim
    assert count("deepseek-v3") == 3 * dense + 58 * sparse + 2 * 129_280 * dim + dim


def test_bert_large_with_pooler_and_next_sentence_head_is_the_checkpoint() -> None:
    # The uncased checkpoint of the pre-training model, both heads included, holds 336,226,108 parameters.
    pooler, next_sentence = 1024 * 1024 + 1024, 2 * 1024 + 2
    assert count("bert-large") + pooler + next_sentence == 336_226_108


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_describes_itself(preset: Preset) -> None:
    assert PRESETS[preset.name] is preset
    assert preset.description
    assert preset.published_source
    assert preset.max_seq_len is None or preset.seq_len <= preset.max_seq_len


def test_presets_are_answered_without_torch() -> None:
    code = "import sys; from planner import models; models.preset(models.names()[0]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
