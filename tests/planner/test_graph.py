from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from costmodels.compute import DTYPE_BYTES
from planner.graph import Block, Dim, ModelGraph, Op, Parameter, Phase, Segment, Value

# --- sizes ---


@pytest.mark.parametrize(
    ("dim", "size"),
    [
        (Dim(7), 7),
        (Dim(7, per_batch=True), 21),
        (Dim(0, 1), 10),
        (Dim(1, 2), 21),
        (Dim(1, 2, per_batch=True), 63),
        (Dim(0, Fraction(1, 2)), 5),
        (Dim(Fraction(1, 2), Fraction(1, 4), per_batch=True), 9),
    ],
)
def test_size_of_a_dim_at_batch_3_and_length_10(dim: Dim, size: int) -> None:
    assert dim.at(3, 10) == size


@given(st.integers(1, 100), st.integers(1, 100), st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_the_shape_of_a_value_is_that_of_its_dims(
    batch: int, length: int, const: int, slope: int, scaled: bool
) -> None:
    value = Value(dims=(Dim(5), Dim(const, slope, scaled)), dtype="bfloat16", storage=0)
    assert value.shape(batch, length) == (5, (const + slope * length) * (batch if scaled else 1))


def test_item_bytes_are_torchs() -> None:
    dtypes = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    sizes = {str(dtype).removeprefix("torch."): dtype.itemsize for dtype in dtypes}
    assert {name: size for name, size in DTYPE_BYTES.items() if name in sizes}.items() <= sizes.items()
    # Quantised types, raw bits and numbers of less than a byte are in no training graph.
    rest = sizes.keys() - DTYPE_BYTES.keys()
    assert all(name.startswith(("q", "bits", "int", "uint", "float4")) for name in rest)
    assert not rest & {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}


# --- what stays in memory ---


def value(size: int, storage: int) -> Value:
    return Value(dims=(Dim(size),), dtype="bfloat16", storage=storage)


def op(phase: Phase, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Op:
    return Op("f.default", "", phase, args=(), inputs=inputs, outputs=outputs, pointwise=False)


def saved(
    storages: list[int],
    ops: list[Op],
    *,
    inputs: tuple[int, ...] = (0,),
    outputs: tuple[int, ...] = (),
    params: tuple[int, ...] = (),
) -> tuple[int, ...]:
    block = Block(
        values=tuple(value(10 + i, storage) for i, storage in enumerate(storages)),
        ops=tuple(ops),
        params=tuple((f"p{v}", v) for v in params),
        inputs=inputs,
        outputs=outputs,
        param_grads=(),
    )
    return block.saved


def test_what_backward_reads_of_forward_is_saved() -> None:
    ops = [op("forward", (0,), (1,)), op("forward", (1,), (2,)), op("backward", (2, 3), (4,))]
    assert saved([0, 1, 2, 3, 4], ops) == (0, 2)


def test_inputs_are_saved_even_if_nothing_reads_them_in_backward() -> None:
    assert saved([0, 1], [op("forward", (0,), (1,))]) == (0,)


def test_parameters_and_own_outputs_are_not_saved() -> None:
    ops = [op("forward", (0, 1), (2,)), op("backward", (1, 2, 3), (4,))]
    assert saved([0, 1, 2, 3, 4], ops, params=(1,), outputs=(2,)) == (0,)


def test_views_of_parameters_and_of_outside_tensors_are_not_saved() -> None:
    # 1 is a parameter and 2 a mask; 3 and 4 are views of them.
    ops = [op("forward", (1,), (3,)), op("forward", (2,), (4,)), op("backward", (3, 4), (5,))]
    assert saved([0, 1, 2, 1, 2, 5], ops, params=(1,)) == (0,)


def test_a_storage_is_saved_once_as_what_allocated_it() -> None:
    # 1 is allocated, 2 and 3 are views of it, and backward reads only those.
    ops = [op("forward", (0,), (1,)), op("forward", (1,), (2, 3)), op("backward", (2, 3), (4,))]
    assert saved([0, 1, 1, 1, 4], ops) == (0, 1)


def test_a_view_of_an_input_is_the_input() -> None:
    assert saved([0, 0, 2], [op("forward", (0,), (1,)), op("backward", (1,), (2,))]) == (0,)


def test_what_only_backward_makes_is_not_saved() -> None:
    ops = [op("forward", (0,), (1,)), op("backward", (2,), (3,)), op("backward", (3,), (4,))]
    assert saved([0, 1, 2, 3, 4], ops) == (0,)


# --- names ---


@pytest.mark.parametrize(
    ("prefix", "relative", "absolute"),
    [("layers.3", "a.weight", "layers.3.a.weight"), ("", "norm.weight", "norm.weight"), ("layers.3", "", "layers.3")],
)
def test_absolute_names(prefix: str, relative: str, absolute: str) -> None:
    assert Segment(block=0, prefix=prefix, modules=()).absolute(relative) == absolute


def test_parameters_are_counted_once_and_known_by_their_first_name() -> None:
    graph = ModelGraph(
        name="m",
        blocks=(),
        segments=(Segment(0, "", ("output",)),),
        params=(Parameter("embedding.weight", (5, 4), True), Parameter("scale", (), False)),
        aliases={"output.weight": "embedding.weight"},
        crossings=(),
        resident_bytes=(),
        fixed_seq_len=None,
        has_sequence=True,
        warnings=(),
    )
    assert [p.numel for p in graph.params] == [20, 1]
    assert graph.num_parameters == 21
    assert graph.canonical(graph.segments[0], "output.weight") == "embedding.weight"
    assert graph.canonical(graph.segments[0], "scale") == "scale"


def test_an_ops_name_is_its_target_without_the_overload() -> None:
    assert op("forward", (), ()).name == "f"
