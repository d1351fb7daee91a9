from __future__ import annotations

import dataclasses
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from costmodels.compute import DTYPE_BYTES
from planner import models
from planner.graph import Block, Ref
from planner.models import ModelConfig
from tests.planner.capture import reference, small
from tests.planner.capture.small import SEQ_LEN, Layer, Stack, block_of
from tests.planner.models.reference import RESNET, TINY

BATCH = 2


# --- FLOP ---


def recomputed_scores_flop(config: ModelConfig, batch: int, seq_len: int) -> int:
    """q k^T of every layer, once."""
    assert isinstance(config, models.DenseDecoderConfig)
    return 2 * config.num_layers * batch * config.num_heads * seq_len**2 * config.head_dim


@pytest.mark.parametrize("name", models.names())
def test_flop_of_every_preset_is_torchs_count_of_the_eager_model(name: str) -> None:
    config, seq_len = reference.shallow(name), models.preset(name).seq_len
    forward, backward = reference.eager_flop(config, BATCH, seq_len)
    if getattr(config, "latent_attention", None):
        # Its value heads are narrower than its query heads, for which the CPU has no fused kernel: eagerly, the scores
        # are kept and not computed again, as a fused backward does.
        backward += recomputed_scores_flop(config, BATCH, seq_len)
    graph = reference.built_at_one_point(config, BATCH, seq_len)
    assert reference.count_flop(graph, BATCH, seq_len) == (forward, backward)


def test_flop_of_a_model_in_full_depth() -> None:
    config = models.preset("llama3-8b").config
    graph = reference.built(config, 8192)
    for batch, seq_len in ((2, 8192), (1, 4096)):
        assert reference.count_flop(graph, batch, seq_len) == reference.eager_flop(config, batch, seq_len)


# --- saved for the backward pass ---


def segment_heads(model: nn.Module, config: ModelConfig) -> list[nn.Module]:
    """The module that each segment but the first starts with."""
    if isinstance(config, models.ResNetConfig):
        stages: Any = (model.layer1, model.layer2, model.layer3, model.layer4)
        return [*(block for stage in stages for block in stage), model.avgpool]  # type: ignore[list-item]
    last = model.head if isinstance(config, models.EncoderConfig) else model.norm
    return [*model.layers, last]  # type: ignore[list-item, misc]


SAVING = TINY | {"resnet": dataclasses.replace(RESNET, num_blocks=(2, 2, 2, 2))}


@pytest.mark.parametrize("name", SAVING)
def test_saved_bytes_are_what_autograd_keeps(name: str) -> None:
    config = SAVING[name]
    with reference.default_dtype(torch.bfloat16), FakeTensorMode(allow_non_fake_inputs=True):
        model, inputs = models.build_from_config(config)
        kept = reference.eager_saved_bytes(model, inputs(BATCH, 16), segment_heads(model, config))
    assert reference.saved_bytes(reference.built_at_one_point(config, BATCH, 16), BATCH, 16) == kept


@pytest.mark.parametrize("name", ["gpt2", "bert", "vit"])
def test_fused_attention_saves_what_torchs_own_fused_kernel_does(name: str) -> None:
    # These need no kernel that the CPU lacks: the eager run is torch's alone.
    config = SAVING[name]
    with reference.default_dtype(torch.bfloat16), FakeTensorMode(allow_non_fake_inputs=True):
        model, inputs = models.build_from_config(config)
        heads = segment_heads(model, config)
        kept = reference.eager_saved_bytes(model, inputs(BATCH, 16), heads, fused=False)
    assert reference.saved_bytes(reference.built_at_one_point(config, BATCH, 16), BATCH, 16) == kept


def test_saved_bytes_of_real_tensors_in_float32() -> None:
    model = Stack([nn.Sequential(Layer(), nn.Dropout(0.5), Layer(), nn.Softmax(dim=-1)) for _ in range(2)])
    kept = reference.eager_saved_bytes(model, small.tokens(BATCH, SEQ_LEN), [*model.layers, model.output])
    graph = reference.at_one_point(model, small.tokens, BATCH, SEQ_LEN, torch.float32)
    assert reference.saved_bytes(graph, BATCH, SEQ_LEN) == kept


def saved_shapes(block: Block) -> list[tuple[int, ...]]:
    return sorted(block.values[v].shape(BATCH, SEQ_LEN) for v in block.saved)


class Views(Layer):
    """Keeps a part of a projection, which keeps all of it in memory, and reads a constant through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(small.DIM, 3 * small.DIM)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        q, k, _ = self.a(x).chunk(3, dim=-1)
        return q.sigmoid() * k * mask.unsqueeze(-1)


class Masked(Stack):
    def body(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[:2], dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, mask)
        return x


def test_a_view_keeps_all_of_its_storage_and_a_constant_is_nobodys() -> None:
    graph = reference.at_one_point(Masked([Views(), Views()]), small.tokens, BATCH, SEQ_LEN)
    # The input; the projection, once and whole for two of its three parts; the sigmoid.
    x, projection = (BATCH, SEQ_LEN, small.DIM), (BATCH * SEQ_LEN, 3 * small.DIM)
    assert saved_shapes(block_of(graph, "layers.0")) == [x, x, projection]


# --- blocks as programs ---


@pytest.fixture(scope="module", params=["llama", "deepseek", "resnet"])
def blocks(request: pytest.FixtureRequest) -> tuple[Block, ...]:
    return reference.built_at_one_point(TINY[request.param], BATCH, 16).blocks


def test_every_value_is_made_before_it_is_read(blocks: tuple[Block, ...]) -> None:
    for block in blocks:
        made = {v for op in block.ops for v in op.outputs}
        seen: set[int] = set()
        for op in block.ops:
            assert all(v in seen or v not in made for v in op.inputs)
            assert not seen & set(op.outputs)
            seen |= set(op.outputs)
        assert all(0 <= v < len(block.values) for op in block.ops for v in (*op.inputs, *op.outputs))
        assert not made & {v for _, v in block.params} and not made & set(block.inputs)
        assert set(block.outputs) <= made


def test_forward_comes_before_backward_and_inputs_are_the_references_of_args(blocks: tuple[Block, ...]) -> None:
    def refs(arg: Any) -> list[int]:
        if isinstance(arg, Ref):
            return [arg.value]
        return [v for a in arg for v in refs(a)] if isinstance(arg, tuple) else []

    for block in blocks:
        phases = [op.phase for op in block.ops]
        assert phases == sorted(phases, reverse=True)
        for op in block.ops:
            assert tuple(dict.fromkeys(refs(op.args))) == op.inputs
            assert op.target.startswith(f"{op.name}.")


def test_gradients_have_the_shape_of_their_parameters(blocks: tuple[Block, ...]) -> None:
    for block in blocks:
        params = dict(block.params)
        assert [fqn for fqn, _ in block.param_grads] == list(params)
        for fqn, grad in block.param_grads:
            assert block.values[grad].dims == block.values[params[fqn]].dims


def test_calls_that_only_keep_books_are_left_out(blocks: tuple[Block, ...]) -> None:
    assert not {op.name for block in blocks for op in block.ops} & {"detach", "alias", "block", "block_backward"}


def test_views_share_the_storage_of_their_base_and_copies_do_not() -> None:
    class Split(Layer):
        def forward(self, x: Tensor, *_: Any) -> Tensor:
            left, right = self.a(x).transpose(0, 1).chunk(2, dim=-1)
            return torch.cat((right, left.exp()), dim=-1).transpose(0, 1)

    block = block_of(reference.at_one_point(Stack([Split(), Split()]), small.tokens, BATCH, SEQ_LEN), "layers.0")
    made = {op.name: [block.values[v].storage for v in op.outputs] for op in block.ops if op.phase == "forward"}
    assert made["split"] == [made["addmm"][0]] * 2
    assert len({made["addmm"][0], made["exp"][0], made["cat"][0]}) == 3


def test_pointwise_calls_are_marked() -> None:
    block = block_of(reference.built_at_one_point(TINY["llama"], BATCH, 16), "layers.0")
    marked = {op.name: op.pointwise for op in block.ops}
    assert marked["mul"] and marked["silu"] and marked["silu_backward"]
    assert not marked["mm"] and not marked["view"] and not marked["rms_norm"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_floating_tensors_count_in_the_compute_precision(dtype: torch.dtype) -> None:
    class Losses(Stack):
        def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(ids).flatten(0, 1), labels.flatten())

    graph = reference.at_one_point(Losses([Layer(), Layer()]).double(), small.tokens, BATCH, SEQ_LEN, dtype)
    block = block_of(graph, "layers.1")
    assert {value.dtype for value in block.values} == {str(dtype).removeprefix("torch.")}
    parameters = sum(prod(block.values[v].shape(1, 1)) * DTYPE_BYTES[block.values[v].dtype] for _, v in block.params)
    assert parameters == (small.DIM**2 + small.DIM) * dtype.itemsize
