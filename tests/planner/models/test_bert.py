from __future__ import annotations

import pytest
import torch

from planner.models.bert import Bert
from tests.planner.models.reference import BERT, randomize, rename, tokens


def test_matches_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=BERT.vocab_size, hidden_size=BERT.dim, num_hidden_layers=BERT.num_layers,
            num_attention_heads=BERT.num_heads, intermediate_size=BERT.hidden_dim, layer_norm_eps=BERT.norm_eps,
            max_position_embeddings=BERT.max_seq_len,
        )
    ).eval()  # fmt: skip
    randomize(theirs)
    names = {
        "bert.embeddings.LayerNorm": "embedding_norm",
        "bert.embeddings.word_embeddings": "tok_embeddings",
        "bert.embeddings.position_embeddings": "pos_embeddings",
        "bert.embeddings.token_type_embeddings": "segment_embeddings",
        "bert.encoder.layer.": "layers.",
        "attention.self.query": "attention.wq",
        "attention.self.key": "attention.wk",
        "attention.self.value": "attention.wv",
        "attention.output.dense": "attention.wo",
        "attention.output.LayerNorm": "attention_norm",
        "intermediate.dense": "feed_forward.w1",
        "output.dense": "feed_forward.w2",
        "output.LayerNorm": "ffn_norm",
        "cls.predictions.transform.dense": "head",
        "cls.predictions.transform.LayerNorm": "norm",
        "cls.predictions.decoder": "output",
    }
    state = rename(theirs.state_dict(), names)
    del state["cls.predictions.bias"]  # the same as output.bias
    ours = Bert(BERT)
    ours.load_state_dict(state)
    ids = tokens(BERT.vocab_size)
    torch.testing.assert_close(ours.logits(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_every_position_sees_every_other() -> None:
    model = Bert(BERT)
    randomize(model)
    ids = tokens(BERT.vocab_size)
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % BERT.vocab_size
    assert (model.logits(ids)[:, 0] != model.logits(changed)[:, 0]).any()
