"""What a model does with the whole numbers of its batch: which of them are legal, read off the program.

An embedding's indices and a loss's targets must lie below the size of what they look up. Between the batch and that
look-up stand only calls that hand whole numbers on (views, copies, padding), in one segment or from one to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from planner.capture.program import Call, ModelProgram, SegmentProgram
from planner.graph import Ref

Shape = tuple[int, ...]
ALONG_TOKENS = 1
"""Dim of a tensor of tokens: samples come first."""


@dataclass(frozen=True)
class Use:
    """What one tensor of the batch is looked up in."""

    kind: Literal["index", "target"]
    below: int
    """Smallest size of what it is looked up in: legal are 0 to one less."""
    shift: int = 0
    """Tokens that the model drops at the begin of a sample: 1 where it shifts its labels itself."""


class _Number(NamedTuple):
    """A value that holds whole numbers of the batch as they came."""

    leaf: int
    shift: int


class _Lookup(NamedTuple):
    """A call that looks whole numbers up."""

    kind: Literal["index", "target"]
    argument: int
    """Position of the whole numbers."""
    table: int
    """Position of what they are looked up in."""
    dim: Callable[[Sequence[Any], int], int]
    """Of the table, from the call's arguments and the table's number of dims."""


_LOOKUPS = {
    "embedding": _Lookup("index", 1, 0, lambda args, dims: 0),
    "nll_loss_forward": _Lookup("target", 1, 0, lambda args, dims: dims - 1),
    "nll_loss2d_forward": _Lookup("target", 1, 0, lambda args, dims: 1),
    "gather": _Lookup("index", 2, 0, lambda args, dims: args[1]),
    "index_select": _Lookup("index", 2, 0, lambda args, dims: args[1]),
}

_HANDED_ON = frozenset({
    "_to_copy", "_unsafe_view", "alias", "cat", "clone", "constant_pad_nd", "detach", "expand", "flatten", "lift_fresh",
    "masked_fill", "permute", "reshape", "select", "slice", "split", "squeeze", "stack", "t", "transpose", "unsqueeze",
    "view", "where",
})  # fmt: skip
"""Calls whose result holds whole numbers of an argument, and whatever the model puts beside them itself."""


def integer_uses(program: ModelProgram) -> Mapping[int, Use]:
    """Index among the tensors of the batch -> what is looked up with it. Those that nothing is looked up with (masks,
    positions that are added) have no use."""
    filled: dict[int, _Number] = {slot: _Number(leaf, 0) for slot, leaf in program.inputs.items()}
    uses: dict[int, Use] = {}

    def of_slot(slot: int) -> _Number | None:
        view = program.views.get(slot)
        if view is None:
            return filled.get(slot)
        before = of_slot(view.looked_at)
        return before and _handed_on(view.call, before)

    for segment in program.segments:
        numbers: dict[int, _Number] = {}
        for value, source in segment.sources.items():
            if source.kind == "slot" and (number := of_slot(source.slot)):
                numbers[value] = number
        for leaf, use in _uses(segment, numbers):
            known = uses.get(leaf)
            uses[leaf] = use if known is None or use.below < known.below else known
        filled.update({slot: numbers[value] for slot, value in segment.results.items() if value in numbers})
    return uses


def _uses(segment: SegmentProgram, numbers: dict[int, _Number]) -> Iterator[tuple[int, Use]]:
    """Look-ups of a segment; ``numbers`` gains the values that hold numbers of the batch."""
    for op, call in zip(segment.block.ops, segment.calls, strict=False):
        held = [numbers[v] for v in op.inputs if v in numbers]
        if not held:
            continue
        if (lookup := _LOOKUPS.get(op.name)) and (number := numbers.get(_value(call.args[lookup.argument]))):
            table = segment.block.values[_value(call.args[lookup.table])].shape(1, 1)
            below = table[lookup.dim(call.args, len(table))]
            yield number.leaf, Use(lookup.kind, below, number.shift)
        elif op.name in _HANDED_ON:
            numbers.update(dict.fromkeys(op.outputs, _handed_on(call, held[0])))


def _value(argument: Any) -> int:
    return argument.value if isinstance(argument, Ref) else -1


def _handed_on(call: Call, number: _Number) -> _Number:
    """After a view or a copy: a slice along the tokens may drop some of the first."""
    if call.target.name() == "aten::slice.Tensor":
        _, dim, start, *_ = (*call.args, 0, 0)
        if dim == ALONG_TOKENS and start:
            return _Number(number.leaf, number.shift + start)
    return number
