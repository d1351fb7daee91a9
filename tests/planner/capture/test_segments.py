from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.graph import Block, ModelGraph
from planner.models import DenseDecoderConfig
from tests.planner.capture import reference, small
from tests.planner.capture.small import DIM, SEQ_LEN, VOCAB, Layer, Stack, block_of, captured, stretches, targets
from tests.planner.models.reference import GPT2, LLAMA, TINY, VIT

BATCH = 2
X = (BATCH, SEQ_LEN, DIM)
"""Shape of the residual stream."""


def prefixes(graph: ModelGraph) -> list[str]:
    return [segment.prefix for segment in graph.segments]


def crossing_shapes(graph: ModelGraph) -> list[list[tuple[int, ...]]]:
    return [[value.shape(BATCH, SEQ_LEN) for value in values] for values in graph.crossings]


def with_gradient(graph: ModelGraph) -> set[str]:
    """Parameters for which some segment yields a gradient."""
    blocks = [(segment, graph.blocks[segment.block]) for segment in graph.segments]
    return {graph.canonical(segment, fqn) for segment, block in blocks for fqn, _ in block.param_grads}


def read(graph: ModelGraph) -> set[str]:
    """Parameters that some segment reads."""
    blocks = [(segment, graph.blocks[segment.block]) for segment in graph.segments]
    return {graph.canonical(segment, fqn) for segment, block in blocks for fqn, _ in block.params}


# --- where the model is cut ---


def test_stretches_between_blocks_are_segments_of_their_own() -> None:
    graph = captured(Stack([Layer() for _ in range(3)]))
    assert prefixes(graph) == ["", "layers.0", "layers.1", "layers.2", ""]
    assert [segment.modules for segment in graph.segments] == [
        ("embedding",), ("layers.0",), ("layers.1",), ("layers.2",), ("output",),
    ]  # fmt: skip
    assert graph.segments[1].absolute("a.weight") == "layers.0.a.weight"
    assert graph.segments[-1].absolute("output.weight") == "output.weight"


def test_the_loss_is_the_last_segments_only_output() -> None:
    graph = captured(Stack([Layer(), Layer()]))
    last = graph.blocks[graph.segments[-1].block]
    assert [last.values[v].dims for v in last.outputs] == [()]
    assert targets(last, "forward")[-1] == "nll_loss_forward"


def test_a_layer_run_twice_is_two_segments_of_one_name() -> None:
    graph = captured(small.Twice([Layer(), Layer()]))
    assert prefixes(graph) == ["", "layers.0", "layers.1", "layers.0", "layers.1", ""]
    assert {fqn for fqn in graph.aliases if fqn.startswith("again")} == {
        f"again.{i}.a.{name}" for i in (0, 1) for name in ("weight", "bias")
    }
    assert with_gradient(graph) == {p.fqn for p in graph.params}


def test_layers_in_pairs_are_segments_each() -> None:
    assert prefixes(captured(small.Pairs(2)))[1:-1] == ["layers.0.0", "layers.0.1", "layers.1.0", "layers.1.1"]


def test_a_sequential_model_without_a_stretch_before_its_blocks() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    graph = captured(model, inputs=lambda batch, _: (torch.zeros(batch, 4),))
    assert prefixes(graph) == ["0", "", "3", ""]
    first = block_of(graph, "0")
    assert first.inputs == () and len(first.outputs) == 1
    assert [fqn for fqn, _ in first.param_grads] == ["weight", "bias"]
    assert targets(first, "backward").count("mm") == 1  # the input needs no gradient
    assert targets(block_of(graph, "3"), "backward").count("mm") == 2


def test_mere_views_between_blocks_are_no_segment() -> None:
    graph = captured(small.Transposed([Layer() for _ in range(3)]))
    assert prefixes(graph) == ["", "layers.0", "layers.1", "layers.2", ""]
    assert crossing_shapes(graph) == [[(SEQ_LEN, BATCH, DIM)]] * 4
    last = graph.blocks[graph.segments[-1].block]
    assert len(last.inputs) == 1 and len(last.outputs) == 1


def test_a_view_with_work_in_backward_is_a_segment() -> None:
    graph = captured(small.Cropped([Layer(), Layer()]), seq_len=16)
    assert prefixes(graph) == ["", "layers.0", "", "layers.1", ""]
    assert "slice_backward" in targets(graph.blocks[graph.segments[2].block], "backward")
    assert graph.fixed_seq_len is None


@pytest.mark.parametrize("layers", [2, 5])
def test_equal_stretches_share_a_block(layers: int) -> None:
    class Residual(Stack):
        def body(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return x

    graph = captured(Residual([Layer() for _ in range(layers)]))
    assert prefixes(graph)[1:-1] == [name for i in range(layers) for name in (f"layers.{i}", "")][:-1]
    between = [segment.block for segment in graph.segments[2:-1:2]]
    assert len(set(between)) == 1 and len(graph.blocks) == 4


# --- what crosses ---


def test_a_chain_crosses_with_one_activation_per_boundary() -> None:
    graph = captured(Stack([Layer() for _ in range(3)]))
    assert crossing_shapes(graph) == [[X]] * 4


def test_skips_cross_every_boundary_on_their_way() -> None:
    graph = captured(small.Skips([Layer() for _ in range(3)]))
    assert prefixes(graph) == ["", "layers.0", "layers.1", "", "layers.2", ""]
    # The embedding all the way; the first layer's result from there on; and what the next segment reads.
    assert crossing_shapes(graph) == [[X], [X, X], [X, X, X], [X, X, X], [X, X, X]]
    last = graph.blocks[graph.segments[-1].block]
    assert len(last.inputs) == 3


class EncoderDecoder(Stack):
    """Every decoder layer reads the encoder's result, of half the length."""

    class Cross(Layer):
        def forward(self, x: Tensor, memory: Tensor) -> Tensor:  # type: ignore[override]
            return x + self.a(memory).mean(dim=1, keepdim=True)

    def __init__(self, encoders: int, decoders: int) -> None:
        super().__init__(Layer() for _ in range(encoders))
        self.decoder = nn.ModuleList(self.Cross() for _ in range(decoders))
        self.start = nn.Parameter(torch.zeros(1, 3, DIM))

    def logits(self, ids: Tensor) -> Tensor:
        memory = self.body(self.embedding(ids))
        x = self.start.expand(ids.shape[0], -1, -1) * 1.0
        for layer in self.decoder:
            x = layer(x, memory)
        return self.output(x)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return self.logits(ids).float().logsumexp(dim=-1).mean()


def test_an_encoders_result_crosses_to_its_last_reader() -> None:
    graph = captured(EncoderDecoder(2, 2))
    assert prefixes(graph) == ["", "layers.0", "layers.1", "", "decoder.0", "decoder.1", ""]
    assert graph.segments[3].modules == ("start",)
    query = (BATCH, 3, DIM)
    assert [sorted(shapes) for shapes in crossing_shapes(graph)] == [[X], [X], [X], [query, X], [query, X], [query]]
    assert with_gradient(graph) == read(graph) == {p.fqn for p in graph.params}


@pytest.mark.parametrize(("num_read", "expected"), [(1, (BATCH, SEQ_LEN, DIM // 2)), (2, X)])
def test_views_cross_for_themselves_and_several_of_one_tensor_as_that(num_read: int, expected: tuple[int, ...]) -> None:
    class Halves(Stack):
        def body(self, x: Tensor) -> Tensor:
            halves = self.layers[0](x).exp().chunk(2, dim=-1)
            x = self.layers[1](torch.cat(halves, dim=-1))
            return x + torch.cat((halves[0], halves[num_read - 1]), dim=-1)

    graph = captured(Halves([Layer(), Layer()]))
    assert [sorted(shapes) for shapes in crossing_shapes(graph)] == [[X], [X], [expected, X], [expected, X]]


# --- parameters ---


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_is_read_and_gets_a_gradient(name: str) -> None:
    graph = reference.built(TINY[name], 1 if name in ("vit", "resnet") else 16)
    everything = {p.fqn for p in graph.params}
    assert read(graph) == everything
    assert with_gradient(graph) == everything


@pytest.mark.parametrize(("config", "expected"), [(LLAMA, {}), (GPT2, {"output.weight": "tok_embeddings.weight"})])
def test_tied_parameters_stand_once(config: DenseDecoderConfig, expected: dict[str, str]) -> None:
    graph = reference.built(config, 16)
    assert graph.aliases == expected
    first, last = graph.blocks[graph.segments[0].block], graph.blocks[graph.segments[-1].block]
    assert ("tok_embeddings.weight" in dict(last.params)) is bool(expected)
    # The sum of both gradients is the embedding's, which runs last.
    assert "tok_embeddings.weight" in dict(first.param_grads)
    assert ("add" in targets(first, "backward")) is bool(expected)
    assert graph.segments[-1].modules == ("norm", "output")


def test_an_argument_of_all_layers_belongs_to_the_segment_before_them() -> None:
    graph = captured(small.SharedParameter(2))
    first = graph.blocks[graph.segments[0].block]
    assert set(dict(first.params)) == set(dict(first.param_grads)) == {"embedding.weight", "scale"}
    assert set(graph.segments[0].modules) == {"embedding", "scale"}


def test_parameters_of_the_model_itself_are_modules_of_their_segment() -> None:
    graph = reference.built(VIT, 1)
    assert graph.segments[0].modules == ("patch_embedding",)
    assert {"patch_embedding.class_token", "patch_embedding.positions"} <= set(dict(graph.blocks[0].params))


def test_a_frozen_embedding_spares_the_first_layer_its_input_gradient() -> None:
    graph = captured(small.FrozenStack([Layer() for _ in range(3)]))
    blocks: list[Block] = [block_of(graph, f"layers.{i}") for i in range(3)]
    assert [targets(block, "backward").count("mm") for block in blocks] == [1, 2, 2]
    assert [len(block.inputs) for block in blocks] == [0, 1, 1]
    assert with_gradient(graph) == {p.fqn for p in graph.params if p.requires_grad}
    assert not graph.params[0].requires_grad
    assert crossing_shapes(graph) == [[], [X], [X], [X]]


class Adapter(Layer):
    """A frozen projection with a trained low-rank one beside it (LoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)
        self.down, self.up = nn.Linear(DIM, 2, bias=False), nn.Linear(2, DIM, bias=False)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x + self.a(x) + self.up(self.down(x))


def test_frozen_parameters_have_no_gradient_and_do_not_stop_others() -> None:
    model = small.FrozenStack([Adapter(), Adapter()])
    model.output.requires_grad_(False)
    graph = captured(model)
    adapters = {f"layers.{i}.{name}.weight" for i in (0, 1) for name in ("down", "up")}
    assert with_gradient(graph) == adapters == {p.fqn for p in graph.params if p.requires_grad}
    assert read(graph) == {p.fqn for p in graph.params}
    ours = reference.count_ops(graph, BATCH, SEQ_LEN)
    assert ours == reference.plain_ops(model, small.tokens, BATCH, SEQ_LEN, torch.bfloat16)


def test_unused_parameters_belong_to_no_segment() -> None:
    class Idle(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(DIM, DIM)

    model = Stack([Idle(), Idle()])
    model.spare = nn.Parameter(torch.zeros(VOCAB))
    graph = captured(model)
    unused = {"spare"} | {f"layers.{i}.idle.{name}" for i in (0, 1) for name in ("weight", "bias")}
    assert {p.fqn for p in graph.params} - read(graph) == unused
    assert with_gradient(graph) == read(graph)


def test_weights_used_by_hand_are_read_by_the_stretch() -> None:
    class ByHand(Stack):
        def body(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = F.linear(x, layer.a.weight)
            return x

    graph = captured(ByHand([Layer(), Layer()]))
    assert prefixes(graph) == [""]
    assert with_gradient(graph) == {"embedding.weight", "output.weight", "layers.0.a.weight", "layers.1.a.weight"}


def test_sums_of_gradients_are_in_the_segment_that_needs_them() -> None:
    graph = captured(small.Skips([Layer() for _ in range(3)]))
    sums = [targets(block, "backward").count("add") for _, block in stretches(graph)]
    # Both sums (of the first layer's result and of the embedding) are next to the first segments, not to the loss.
    assert sums == [2, 0, 0]
