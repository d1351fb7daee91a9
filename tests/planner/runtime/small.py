"""Small models of every family with real parameters, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from planner import models
from tests.planner.layouts.small import CONFIGS, SEQ_LEN, Thirds, thirds_inputs

FAMILIES = (*CONFIGS, "thirds", "resnet", "vit")
IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet-50", {"image_size": 32, "num_blocks": (2, 1, 1, 1), "width": 8, "num_classes": 16}),
    "vit": ("vit-l-16", {"image_size": 16, "patch_size": 4, "dim": 32, "num_layers": 2, "num_heads": 4,
                         "hidden_dim": 24, "num_classes": 16}),
}  # fmt: skip


@dataclass(frozen=True)
class Small:
    """A model and how it is fed."""

    model: nn.Module
    inputs: Callable[[int, int], Any]
    seq_len: int

    def batch(self, samples: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs; whole numbers are small enough to be any index."""
        random = torch.Generator().manual_seed(seed)

        def filled(like: Tensor) -> Tensor:
            if like.is_floating_point():
                return torch.randn(like.shape, generator=random)
            return torch.randint(0, 16, like.shape, generator=random)

        return tuple(filled(torch.empty(t.shape, dtype=t.dtype)) for t in self.inputs(samples, self.seq_len))


def small(family: str, *, num_layers: int = 4, vocab_size: int = 64, **sizes: Any) -> Small:
    """Width 32; the same parameters every time."""
    torch.manual_seed(0)
    if family == "thirds":
        return Small(Thirds(), thirds_inputs, SEQ_LEN)
    if family in IMAGES:
        preset, own = IMAGES[family]
        model, inputs = models.build_from_config(replace(models.preset(preset).config, **own | sizes))
        return Small(model, inputs, 1)
    preset, own = CONFIGS[family]
    config = replace(models.preset(preset).config, dim=32, num_layers=num_layers, vocab_size=vocab_size, **own | sizes)
    model, inputs = models.build_from_config(config)
    return Small(model, inputs, SEQ_LEN)
