"""Weights of models without any, module by module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from planner.errors import ModelSourceError
from planner.runtime.initialise import Weights

CPU = torch.device("cpu")


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32))
        self.outer = nn.Linear(64, 32)
        self.tied = nn.Linear(64, 32)
        self.tied.weight = self.inner[0].weight


class Forgetful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        self.register_buffer("angles", torch.arange(3.0))


class Own(Forgetful):
    def reset_parameters(self) -> None:
        nn.init.ones_(self.gain)
        self.angles.copy_(torch.arange(3.0))


def weights(model: type[nn.Module], seed: int = 3) -> Weights:
    with torch.device("meta"):
        made = model()
    torch.manual_seed(seed)
    return Weights(made, device=CPU, dtype=torch.float32)


def test_modules_fill_their_own_weights_from_seeds_of_their_own() -> None:
    first, second = weights(Scaled), weights(Scaled)
    before = torch.get_rng_state()
    forward = {name: first.parameter(name) for name, _ in first.model.named_parameters()}
    backward = {name: second.parameter(name) for name in reversed(forward)}
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(forward[name], backward[name]) for name in forward)
    assert not torch.equal(forward["inner.0.weight"], forward["outer.weight"])
    assert not torch.equal(forward["outer.weight"], weights(Scaled, seed=4).parameter("outer.weight"))
    assert torch.equal(first.parameter("tied.weight"), forward["inner.0.weight"])
    # What nn.Linear draws from: uniform within 1 / sqrt(64).
    assert forward["outer.weight"].abs().max() <= 0.125 and forward["outer.weight"].std() > 0.06
    assert torch.equal(first.buffer("inner.1.running_var"), torch.ones(32))
    assert all(p.is_meta for p in first.model.parameters())


def test_weights_that_are_there_are_kept() -> None:
    model = nn.Linear(4, 4)
    assert torch.equal(Weights(model, device=CPU, dtype=torch.bfloat16).parameter("weight"), model.weight.bfloat16())


def test_what_nothing_fills_is_named() -> None:
    with pytest.raises(ModelSourceError, match=r"gain is on meta and nothing fills it: neither Forgetful.reset_param"):
        weights(Forgetful).parameter("gain")
    assert torch.equal(weights(Own).buffer("angles"), torch.arange(3.0))


def test_a_hugging_face_model_fills_itself() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    found = Weights(model, device=CPU, dtype=torch.float32)
    eager = transformers.LlamaForCausalLM(config)
    assert torch.equal(found.buffer("model.rotary_emb.inv_freq"), eager.model.rotary_emb.inv_freq)
    assert found.parameter("model.layers.0.mlp.up_proj.weight").std() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(found.parameter("model.norm.weight"), torch.ones(32))
