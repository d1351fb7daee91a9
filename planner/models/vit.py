"""The vision transformer (arXiv 2010.11929): patches, a class token, pre-norm blocks, a linear classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.configs import VisionTransformerConfig
from planner.models.layers import INIT_STD, Attention, FeedForward, ReferenceModel, TransformerBlock


class PatchEmbedding(nn.Module):
    """``images [B, 3, H, W]`` -> ``[B, 1 + patches, D]``: projected patches behind a class token, plus positions."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        num_patches = (config.image_size // config.patch_size) ** 2
        self.projection = nn.Conv2d(3, config.dim, kernel_size=config.patch_size, stride=config.patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.dim))
        self.positions = nn.Parameter(torch.empty(1, 1 + num_patches, config.dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.class_token)
        nn.init.normal_(self.positions, std=INIT_STD)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.projection(images).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(patches.shape[0], -1, -1)
        return torch.cat((class_token, patches), dim=1) + self.positions


class VisionTransformer(ReferenceModel):
    """Patch embedding, ``num_layers`` blocks and a classifier: ``(images, labels) -> mean cross-entropy``."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config)
        self.layers = nn.ModuleList(self._make_layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.output = nn.Linear(config.dim, config.num_classes)

    @staticmethod
    def _make_layer(config: VisionTransformerConfig) -> TransformerBlock:
        return TransformerBlock(
            attention=Attention(
                config.dim,
                num_heads=config.num_heads,
                num_kv_heads=config.num_heads,
                head_dim=config.dim // config.num_heads,
                causal=False,
                bias=True,
            ),
            feed_forward=FeedForward(config.dim, config.hidden_dim, activation="gelu", bias=True),
            attention_norm=nn.LayerNorm(config.dim, eps=config.norm_eps),
            ffn_norm=nn.LayerNorm(config.dim, eps=config.norm_eps),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss (scalar, float32) of ``images [B, 3, H, W]`` against ``labels [B]``."""
        return F.cross_entropy(self.logits(images).float(), labels)

    def logits(self, images: Tensor) -> Tensor:
        """``images [B, 3, H, W]`` -> ``[B, num_classes]``."""
        x = self.patch_embedding(images)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x)[:, 0])
