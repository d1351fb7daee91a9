from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from planner import models
from planner.capture.segments import RawModel
from planner.capture.shapes import Point, ShapeMismatchError, fit
from planner.errors import TraceError
from planner.graph import Block, Dim, ModelGraph, Op, Segment, Value
from tests.planner.capture import reference, small
from tests.planner.capture.small import Layer, Stack, captured
from tests.planner.models.reference import RESNET, TINY, VIT

# --- fitting numbers ---

SEGMENTS = (Segment(block=0, prefix="", modules=("m",)),)


def program(*sizes: int, **changes: Any) -> RawModel:
    value = Value(dims=tuple(Dim(size) for size in sizes), dtype="bfloat16", storage=0)
    op = Op(target="exp.default", fqn="m", phase="forward", args=(), inputs=(), outputs=(0,), pointwise=True)
    block = Block(values=(value,), ops=(op,), params=(), inputs=(), outputs=(0,), param_grads=())
    return RawModel(blocks=(replace(block, **changes),), segments=SEGMENTS, crossings=((value,),))


def points(
    size: Any, *, batches: tuple[int, ...] = (2, 4, 2, 3), lengths: tuple[int, ...] = (8, 8, 4, 2)
) -> list[Point]:
    return [Point(b, s, program(size(b, s))) for b, s in zip(batches, lengths, strict=True)]


DIMS = st.builds(
    Dim,
    const=st.integers(0, 10_000),
    slope=st.one_of(st.just(0), st.integers(1, 5000), st.sampled_from([Fraction(1, 2), Fraction(3, 4)])),
    per_batch=st.booleans(),
)


@given(dim=DIMS, batch=st.integers(1, 64), seq_len=st.integers(1, 4096))
def test_every_dim_is_recovered_from_four_points(dim: Dim, batch: int, seq_len: int) -> None:
    lengths = (4096, 4096, 2048, 1024)
    model = fit(points(dim.at, lengths=lengths))
    for fitted in (*model.blocks[0].values, *model.crossings[0]):
        assert fitted.dims[0].at(batch, 4 * seq_len) == dim.at(batch, 4 * seq_len)


def test_a_dim_of_both_batch_and_length_is_their_product() -> None:
    model = fit(points(lambda batch, seq_len: 3 * batch * (seq_len + 1)))
    assert model.blocks[0].values[0].dims == (Dim(3, 3, per_batch=True),)


@pytest.mark.parametrize(
    "size",
    [
        lambda b, s: s * s,
        lambda b, s: b + s,
        lambda b, s: b + 1,
        lambda b, s: b * b,
        lambda b, s: max(s, 4),
        lambda b, s: -(-s // 3),
    ],
    ids=["square of the length", "sum", "one more", "square of the batch", "maximum", "rounded up"],
)
def test_what_no_dim_describes_is_refused(size: Any) -> None:
    with pytest.raises(ShapeMismatchError, match=r"a dim of size \d+ is \d+ at batch"):
        fit(points(size))


@pytest.mark.parametrize(
    "other",
    [
        program(8, ops=()),
        program(8, 8),
        program(8, params=(("w", 0),)),
        program(8, values=(Value(dims=(Dim(8),), dtype="float32", storage=0),)),
        replace(program(8), segments=()),
        replace(program(8), crossings=((),)),
        replace(program(8), blocks=program(8).blocks * 2),
    ],
    ids=["operations", "number of dims", "parameters", "dtype", "segments", "crossings", "blocks"],
)
def test_points_must_describe_one_program(other: RawModel) -> None:
    with pytest.raises(ShapeMismatchError):
        fit([Point(2, 8, program(8)), Point(4, 8, other), Point(3, 8, program(8))])


# --- re-pricing is tracing again ---


def sizes(graph: ModelGraph | RawModel, batch: int, seq_len: int) -> Iterator[Any]:
    for block in graph.blocks:
        yield [(v.shape(batch, seq_len), v.dtype, v.storage) for v in block.values]
        yield [(op.target, op.fqn, op.phase, op.inputs, op.outputs) for op in block.ops]
    yield [[v.shape(batch, seq_len) for v in crossing] for crossing in graph.crossings]


def assert_repriced(model: nn.Module, inputs: Any, graph: ModelGraph, at: list[tuple[int, int]]) -> None:
    assert graph.fixed_seq_len is None
    for batch, seq_len in at:
        fresh = reference.at_one_point(model, inputs, batch, seq_len)
        assert list(sizes(graph, batch, seq_len)) == list(sizes(fresh, batch, seq_len))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "deepseek", "bert"])
def test_other_lengths_of_built_in_models_are_what_a_fresh_trace_finds(name: str) -> None:
    with torch.device("meta"):
        model, inputs = models.build_from_config(TINY[name])
    graph = reference.built(TINY[name], 16)
    assert graph.has_sequence
    assert_repriced(model, inputs, graph, [(5, 11), (2, 12)])


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_models_of_images_have_no_sequence(config: Any) -> None:
    with torch.device("meta"):
        model, inputs = models.build_from_config(config)
    graph = reference.built(config, 1)
    assert not graph.has_sequence
    assert_repriced(model, inputs, graph, [(7, 1)])


class Shifted(Stack):
    """Predicts the next token: the last logits and the first label are cut off."""

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        logits = self.logits(ids)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())


class Patches(Stack):
    """Two tokens are one position; half of the layers' sequence is pooled."""

    def logits(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).unflatten(1, (-1, 2)).mean(2)
        x = self.layers[0](x)
        return self.output(self.layers[1](F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return self.logits(ids).float().mean()


@pytest.mark.parametrize(("kind", "at"), [(Shifted, [(3, 7), (4, 64)]), (Patches, [(3, 20), (4, 64)])])
def test_lengths_that_layers_change_are_followed(kind: type[Stack], at: list[tuple[int, int]]) -> None:
    model = kind([Layer(), Layer()])
    assert_repriced(model, small.tokens, captured(model, seq_len=32), at)


# --- what holds for one length, or for none ---


class OverTime(Stack):
    """One call of a layer per position."""

    def body(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x[:, 0])
        states = []
        for step in range(x.shape[1]):
            state = self.layers[0](state + x[:, step])
            states.append(state)
        return self.layers[1](torch.stack(states, dim=1))


class Pairwise(Stack):
    """A table with an entry per pair of positions, as one dim."""

    def body(self, x: Tensor) -> Tensor:
        pairs = (x.unsqueeze(1) * x.unsqueeze(2)).flatten(1, 2)
        return super().body(x + pairs.mean(dim=1, keepdim=True))


class AtLeastEight(Stack):
    def body(self, x: Tensor) -> Tensor:
        return super().body(x.unflatten(1, (8, -1)).flatten(1, 2))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (OverTime, "the sequence of modules"),
        (Pairwise, "a dim of size 64"),
        (AtLeastEight, "cannot trace AtLeastEight"),
    ],
)
def test_a_program_that_changes_with_the_length_holds_for_one(kind: type[Stack], reason: str) -> None:
    model = kind([Layer(), Layer()])
    graph = captured(model)
    assert graph.fixed_seq_len == small.SEQ_LEN and graph.has_sequence
    (warning,) = graph.warnings
    assert warning.startswith(f"traced for seq_len {small.SEQ_LEN} only: at other lengths") and reason in warning
    fresh = reference.at_one_point(model, small.tokens, 5, small.SEQ_LEN)
    assert list(sizes(graph, 5, small.SEQ_LEN)) == list(sizes(fresh, 5, small.SEQ_LEN))


class ByBatch(Stack):
    """Large batches go through the layers once more."""

    def body(self, x: Tensor) -> Tensor:
        return super().body(super().body(x) if x.shape[0] > 3 else x)


class Padded(Stack):
    """The batch is filled up to a power of two."""

    def body(self, x: Tensor) -> Tensor:
        full = 1 << (x.shape[0] - 1).bit_length()
        return super().body(F.pad(x, (0, 0, 0, 0, 0, full - x.shape[0])))[: x.shape[0]]


@pytest.mark.parametrize("kind", [ByBatch, Padded])
def test_a_program_that_changes_with_the_batch_is_refused(kind: type[Stack]) -> None:
    with pytest.raises(
        TraceError, match=f"the operations of {kind.__name__} change with the number of samples: .* pad"
    ):
        captured(kind([Layer(), Layer()]))


def test_a_given_length_is_not_doubted_when_inputs_ignore_it() -> None:
    graph = captured(Stack([Layer(), Layer()]), inputs=lambda batch, _: small.tokens(batch, 6), seq_len=128)
    assert graph.fixed_seq_len is None and not graph.has_sequence and graph.warnings == ()
