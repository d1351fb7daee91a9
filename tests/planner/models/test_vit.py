from __future__ import annotations

import pytest
import torch

from planner.models.vit import PatchEmbedding, VisionTransformer
from tests.planner.models.reference import VIT, randomize, rename


def test_patches_and_class_token() -> None:
    embedding = PatchEmbedding(VIT)
    assert embedding(torch.randn(3, 3, 32, 32)).shape == (3, 1 + 16, VIT.dim)


def test_matches_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=VIT.dim, num_hidden_layers=VIT.num_layers, num_attention_heads=VIT.num_heads,
            intermediate_size=VIT.hidden_dim, image_size=VIT.image_size, patch_size=VIT.patch_size,
            layer_norm_eps=VIT.norm_eps, num_labels=VIT.num_classes,
        )
    ).eval()  # fmt: skip
    randomize(theirs)
    names = {
        "vit.": "",
        "embeddings.patch_embeddings.": "patch_embedding.",
        "embeddings.cls_token": "patch_embedding.class_token",
        "embeddings.position_embeddings": "patch_embedding.positions",
        "layernorm_before": "attention_norm",
        "layernorm_after": "ffn_norm",
        "layernorm": "norm",
        "classifier": "output",
        "q_proj": "wq",
        "k_proj": "wk",
        "v_proj": "wv",
        "o_proj": "wo",
        "mlp.fc1": "feed_forward.w1",
        "mlp.fc2": "feed_forward.w2",
    }
    ours = VisionTransformer(VIT)
    ours.load_state_dict(rename(theirs.state_dict(), names))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.logits(images), theirs(images).logits, rtol=1e-5, atol=1e-5)
