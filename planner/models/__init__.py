"""Reference models by name: the embedded default, so that planning works with nothing but torch installed.

Names and presets are answered without importing torch; ``build`` and ``build_from_config`` import it when called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from hardware_profiles.errors import UnknownNameError
from planner.errors import UsageError
from planner.models.configs import DenseDecoderConfig as DenseDecoderConfig
from planner.models.configs import EncoderConfig as EncoderConfig
from planner.models.configs import LatentAttentionConfig as LatentAttentionConfig
from planner.models.configs import ModelConfig as ModelConfig
from planner.models.configs import MoEDecoderConfig as MoEDecoderConfig
from planner.models.configs import ResNetConfig as ResNetConfig
from planner.models.configs import VisionTransformerConfig as VisionTransformerConfig
from planner.models.presets import PRESETS
from planner.models.presets import Preset as Preset

if TYPE_CHECKING:
    from torch import Tensor, nn

_FAMILIES: dict[type, tuple[str, str]] = {
    DenseDecoderConfig: ("dense", "Decoder"),
    MoEDecoderConfig: ("moe", "MoEDecoder"),
    EncoderConfig: ("bert", "Bert"),
    VisionTransformerConfig: ("vit", "VisionTransformer"),
    ResNetConfig: ("resnet", "ResNet"),
}


def names() -> tuple[str, ...]:
    """Names of the presets, in order of family and size."""
    return tuple(PRESETS)


def preset(name: str) -> Preset:
    """The preset called ``name``. Raises ``UnknownNameError`` listing the known names and the nearest."""
    if name not in PRESETS:
        raise UnknownNameError("model", name, PRESETS)
    return PRESETS[name]


def build(name: str) -> tuple[nn.Module, Callable[[int, int], tuple[Tensor, ...]]]:
    """Build the preset called ``name`` under the current default device and dtype.

    Returns the module, ``forward(*inputs) -> scalar loss``, and ``inputs(batch_size, seq_len)`` (`build_from_config`).
    Raises ``UnknownNameError`` for an unknown name.
    """
    return build_from_config(preset(name).config, name=name)


def build_from_config(
    config: ModelConfig, *, name: str = "custom model"
) -> tuple[nn.Module, Callable[[int, int], tuple[Tensor, ...]]]:
    """Build a model from its configuration under the current default device and dtype.

    Returns the module and a function ``inputs(batch_size, seq_len)`` of example inputs on the device and dtype that are
    the default when it is called: token ids and labels ``[B, S]`` (int64 zeros), or images ``[B, 3, H, W]`` and labels
    ``[B]`` with ``seq_len`` ignored. It raises ``UsageError`` when ``seq_len`` exceeds ``config.max_seq_len``; ``name``
    is what that message calls the model.
    """
    module, class_name = _FAMILIES[type(config)]
    model = getattr(importlib.import_module(f"planner.models.{module}"), class_name)(config)

    def inputs(batch_size: int, seq_len: int) -> tuple[Tensor, ...]:
        import torch

        if isinstance(config, VisionTransformerConfig | ResNetConfig):
            images = torch.zeros(batch_size, 3, config.image_size, config.image_size)
            return images, torch.zeros(batch_size, dtype=torch.int64)
        if not 1 <= seq_len <= config.max_seq_len:
            raise UsageError(
                f"seq_len ({seq_len}) must be between 1 and max_seq_len ({config.max_seq_len}) of {name}. "
                f"Choose a shorter sequence or a model with a longer context."
            )
        tokens = torch.zeros(batch_size, seq_len, dtype=torch.int64)
        return tokens, torch.zeros_like(tokens)

    return model, inputs
