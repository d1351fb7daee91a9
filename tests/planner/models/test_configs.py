from __future__ import annotations

import dataclasses

import pytest

from planner.models import DenseDecoderConfig, MoEDecoderConfig, ResNetConfig, VisionTransformerConfig, configs
from tests.planner.models.reference import DEEPSEEK, LLAMA, TINY


def test_rope_dim_is_the_whole_head_or_the_rotated_part() -> None:
    assert LLAMA.rope_dim == LLAMA.head_dim == 8
    assert DEEPSEEK.rope_dim == 8 < DEEPSEEK.head_dim


@pytest.mark.parametrize("config", TINY.values(), ids=TINY)
def test_configs_are_frozen_values(config: configs.ModelConfig) -> None:
    assert dataclasses.replace(config) == config
    assert hash(dataclasses.replace(config)) == hash(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_classes = 3  # type: ignore[misc]


def test_a_mixture_is_a_decoder_with_more_fields() -> None:
    dense = {field.name for field in dataclasses.fields(DenseDecoderConfig)}
    assert dense < {field.name for field in dataclasses.fields(MoEDecoderConfig)}


def test_images_have_no_sequence_limit() -> None:
    assert VisionTransformerConfig.max_seq_len is ResNetConfig.max_seq_len is None
