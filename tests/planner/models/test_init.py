from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from planner import models
from planner.errors import UnknownNameError, UsageError
from tests.planner.models.reference import BERT, GPT2, LLAMA, RESNET, TINY, VIT

DTYPES = [torch.float32, torch.bfloat16]
each_family = pytest.mark.parametrize("config", TINY.values(), ids=TINY)


@pytest.fixture(params=DTYPES, ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def randomized(inputs: tuple[Tensor, ...], config: models.ModelConfig) -> tuple[Tensor, ...]:
    classes = getattr(config, "vocab_size", None) or config.num_classes
    return tuple(
        torch.randn_like(value) if value.is_floating_point() else torch.randint_like(value, classes) for value in inputs
    )


@each_family
def test_forward_and_backward_are_finite_for_every_parameter(config: models.ModelConfig, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, make_inputs = models.build_from_config(config)
    model.init_weights()
    loss = model(*randomized(make_inputs(4, 16), config))
    loss.backward()
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@each_family
def test_joint_graph_traces_on_fake_tensors(config: models.ModelConfig) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model, make_inputs = models.build_from_config(config)
        with FakeTensorMode(allow_non_fake_inputs=True):  # `to_empty` reads the meta parameters
            model.to_empty(device="cpu")
            model.init_weights()
            inputs = make_inputs(2, 16)
            parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

            def joint(parameters, buffers, inputs):
                loss = torch.func.functional_call(model, {**parameters, **buffers}, inputs, tie_weights=True)
                return loss, torch.autograd.grad(loss, list(parameters.values()))

            graph = make_fx(joint)(parameters, buffers, inputs)
    finally:
        torch.set_default_dtype(torch.float32)
    outputs = graph.graph.output_node().args[0]
    assert [value.meta["val"].shape for value in outputs[1:]] == [value.shape for value in parameters.values()]


@pytest.mark.parametrize("config", [GPT2, BERT], ids=["gpt2", "bert"])
def test_ties_survive_to_empty(config: models.ModelConfig) -> None:
    with torch.device("meta"):
        model, _ = models.build_from_config(config)
    model.to_empty(device="cpu")
    assert model.output.weight is not model.tok_embeddings.weight
    model.tie_weights()
    assert model.output.weight is model.tok_embeddings.weight


@each_family
def test_init_weights_overwrites_every_parameter_and_buffer(config: models.ModelConfig) -> None:
    model, _ = models.build_from_config(config)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.fill_(7)
    model.init_weights()
    assert not any((value == 7).any() for value in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("name", models.names())
def test_every_preset_builds_on_meta_and_offers_inputs(name: str) -> None:
    preset = models.preset(name)
    with torch.device("meta"):
        model, make_inputs = models.build(name)
        values, labels = make_inputs(2, preset.seq_len)
    assert isinstance(model, nn.Module)
    if preset.max_seq_len is None:
        assert values.shape == (2, 3, 224, 224)
        assert labels.shape == (2,)
    else:
        assert values.shape == labels.shape == (2, preset.seq_len)
        assert values.dtype == torch.int64
    assert labels.dtype == torch.int64


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_images_come_in_the_default_dtype(config: models.ModelConfig, dtype: torch.dtype) -> None:
    _, make_inputs = models.build_from_config(config)
    assert make_inputs(1, 1)[0].dtype == dtype


def test_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown model 'llama3-8'\. Did you mean 'llama3-8b'\? Known: bert-large"
    ):
        models.build("llama3-8")


def test_too_long_a_sequence_names_the_numbers_and_the_model() -> None:
    with torch.device("meta"):
        _, make_inputs = models.build("gpt2")
    with pytest.raises(UsageError, match=r"seq_len \(1025\) must be between 1 and max_seq_len \(1024\) of gpt2\."):
        make_inputs(1, 1025)


def test_a_shrunken_configuration_keeps_its_own_limit() -> None:
    _, make_inputs = models.build_from_config(dataclasses.replace(LLAMA, max_seq_len=8), name="tiny")
    assert make_inputs(1, 8)[0].shape == (1, 8)
    with pytest.raises(UsageError, match=r"seq_len \(0\) .* max_seq_len \(8\) of tiny"):
        make_inputs(1, 0)
