from __future__ import annotations

from math import prod

import pytest

from costmodels.compute import DTYPE_BYTES
from planner.graph import Block, Dim, Op, Value
from planner.solvers.liveness import transient_peak_bytes
from tests.planner.layouts.small import graph


def make(*ops: tuple[str, tuple[int, ...], tuple[int, ...]], sizes: str, **parts: object) -> tuple[Block, list[int]]:
    """A block of calls (phase, inputs, outputs) over values of the given sizes, each its own storage."""
    values = tuple(Value((Dim(int(size)),), "int8", storage) for storage, size in enumerate(sizes.split()))
    calls = tuple(
        Op(target="x.y", fqn="", phase=phase, args=(), inputs=inputs, outputs=outputs, pointwise=False)  # type: ignore[arg-type]
        for phase, inputs, outputs in ops
    )
    empty: dict[str, object] = {"params": (), "inputs": (), "outputs": (), "param_grads": ()}
    block = Block(values=values, ops=calls, **{**empty, **parts})  # type: ignore[arg-type]
    return block, [int(size) for size in sizes.split()]


def test_a_tensor_lives_from_its_maker_to_its_last_reader() -> None:
    """0 -> 1 -> 2 -> 3: two neighbours are alive at once; the input is counted by who holds it."""
    block, sizes = make(
        ("forward", (0,), (1,)), ("forward", (1,), (2,)), ("forward", (2,), (3,)), sizes="1 10 30 5", inputs=(0,)
    )
    assert transient_peak_bytes(block, sizes) == 40


def test_what_is_saved_for_backward_is_counted_elsewhere() -> None:
    block, sizes = make(
        ("forward", (0,), (1,)), ("forward", (1,), (2,)), ("backward", (3, 1), (4,)), sizes="1 100 7 2 3",
        inputs=(0,), outputs=(2,),
    )  # fmt: skip
    assert transient_peak_bytes(block, sizes) == 7


def test_incoming_gradients_count_and_constants_that_both_passes_read_do_not() -> None:
    """1 is a constant (rotary angles): it stands through the whole step. 3 is the gradient of the output."""
    block, sizes = make(
        ("forward", (0, 1), (2,)), ("backward", (3, 1), (4,)), sizes="1 1000 7 20 4", inputs=(0,), outputs=(2,)
    )
    assert transient_peak_bytes(block, sizes) == 24


def test_parameters_and_their_gradients_are_counted_elsewhere() -> None:
    block, sizes = make(
        ("forward", (0, 1), (2,)), ("backward", (3,), (4,)), sizes="1 500 7 2 500", inputs=(0,), outputs=(2,),
        params=(("w", 1),), param_grads=(("w", 4),),
    )  # fmt: skip
    assert transient_peak_bytes(block, sizes) == 7


def naive(block: Block, sizes: list[int]) -> int:
    """Every storage's interval of indices, and the fullest index; backward and forward apart."""
    storage = [v.storage for v in block.values]
    known = {storage[v] for op in block.ops if op.phase == "forward" for v in (*op.inputs, *op.outputs)}
    skip = {storage[v] for v in (*block.saved, *block.inputs)}
    skip |= {storage[v] for _, v in (*block.params, *block.param_grads)}
    peaks = [0]
    for phase in ("forward", "backward"):
        ops = [op for op in block.ops if op.phase == phase]
        spans: dict[int, list[int]] = {}
        first: dict[int, int] = {}
        for i, op in enumerate(ops):
            arrives = [v for v in op.inputs if phase == "backward" and storage[v] not in known]
            for v in (*arrives, *op.outputs):
                spans.setdefault(storage[v], [i])
                first.setdefault(storage[v], v)
            for v in (*op.inputs, *op.outputs):
                if storage[v] in spans:
                    spans[storage[v]].append(i)
        counted = {s: span for s, span in spans.items() if s not in skip}
        for i in range(len(ops)):
            alive = [first[s] for s, span in counted.items() if span[0] <= i <= span[-1]]
            peaks.append(sum(sizes[v] for v in alive))
    return max(peaks)


@pytest.mark.parametrize("family", ["gqa", "gpt", "bert", "mixtral", "vit"])
def test_the_walk_over_real_blocks_equals_a_count_by_intervals(family: str) -> None:
    for block in graph(family).blocks:
        sizes = [prod(v.shape(2, 8)) * DTYPE_BYTES[v.dtype] for v in block.values]
        assert transient_peak_bytes(block, sizes) == naive(block, sizes) > 0
