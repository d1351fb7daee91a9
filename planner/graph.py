"""ModelGraph: what capture leaves of a model. Torch-free and frozen, so that every price can be computed without torch.

A model is a run of *segments* in execution order. A segment is one call of a repeated module ("block", e.g. a
transformer layer) or the stretch of operations between two such calls (embedding, final norm with head and loss).
Segments with equal operations share one `Block`: 126 equal layers are stored, solved and priced once.

Shapes are functions of the microbatch's number of samples ``batch`` and of ``seq_len`` (see `Dim`), so that another
microbatch or sequence length is priced without tracing again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

Phase = Literal["forward", "backward"]


class Dim(NamedTuple):
    """Size of one tensor dim: ``(const + slope * seq_len) * (batch if per_batch else 1)``."""

    const: Fraction | int
    slope: Fraction | int = 0
    per_batch: bool = False

    def at(self, batch: int, seq_len: int) -> int:
        size = self.const + self.slope * seq_len if self.slope else self.const
        return int(size * batch if self.per_batch else size)


class Ref(NamedTuple):
    """Stands in `Op.args` for the block's value of that index."""

    value: int


Arg: TypeAlias = "Ref | int | float | bool | str | None | tuple[Arg, ...]"


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of a block."""

    dims: tuple[Dim, ...]
    dtype: str
    storage: int
    """Values with equal numbers share memory (a view and its base); unique within the block."""

    def shape(self, batch: int, seq_len: int) -> tuple[int, ...]:
        return tuple(dim.at(batch, seq_len) for dim in self.dims)


@dataclass(frozen=True, slots=True)
class Op:
    """One ATen call."""

    target: str
    """Without namespace, with overload: ``mm.default``."""
    fqn: str
    """Module that issued it, relative to the block; a backward op carries its forward op's module."""
    phase: Phase
    args: tuple[Arg, ...]
    """Positional then keyword arguments; tensors are `Ref`. Sizes in here are those of the traced batch and seq_len."""
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    pointwise: bool
    """Every element of the result depends on the same element of the (broadcast) arguments only."""

    @property
    def name(self) -> str:
        """Target without overload: ``mm``."""
        return self.target.partition(".")[0]


@dataclass(frozen=True)
class Block:
    """Operations of one segment, forward and backward, over indexed values (a small SSA program)."""

    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    """In execution order: all forward ones, then all backward ones."""
    params: tuple[tuple[str, int], ...]
    """(FQN relative to the segment's prefix, value index) of every parameter that the block reads."""
    inputs: tuple[int, ...]
    """Activations that come from earlier segments and carry gradients."""
    outputs: tuple[int, ...]
    """Activations that later segments read and that carry gradients (the loss, in the last segment)."""
    param_grads: tuple[tuple[str, int], ...]
    """(relative FQN, value index) of every parameter gradient that the backward pass yields."""

    @cached_property
    def saved(self) -> tuple[int, ...]:
        """One value per storage that stays in memory from forward to backward.

        These are the block's inputs and whatever the backward ops read of the forward pass, except the block's own
        outputs (the next block counts those as its inputs) and what is in memory anyway: parameters and what comes from
        outside without a gradient (labels, masks, rotary angles), also through a view.
        """
        forward = [op for op in self.ops if op.phase == "forward"]
        produced = {v for op in forward for v in op.outputs} | set(self.inputs)
        outside = {v for op in forward for v in op.inputs} - produced
        skip = {self.values[v].storage for v in (*self.outputs, *outside, *(v for _, v in self.params))}
        first: dict[int, int] = {self.values[v].storage: v for v in self.inputs}
        for op in self.ops:
            if op.phase == "backward":
                for v in op.inputs:
                    storage = self.values[v].storage
                    if v in produced and storage not in skip:
                        first.setdefault(storage, v)
        # A view may be smaller or larger (expand) than its base: keep the value that the forward pass allocated.
        allocated: dict[int, int] = {}
        for op in self.ops:
            for v in op.outputs:
                allocated.setdefault(self.values[v].storage, v)
        return tuple(sorted(allocated.get(s, v) if v not in self.inputs else v for s, v in first.items()))


@dataclass(frozen=True)
class Segment:
    """One position of the model in execution order."""

    block: int
    """Index into `ModelGraph.blocks`."""
    prefix: str
    """Module FQN of a repeated block's call (``layers.3``); empty for a stretch between blocks."""
    modules: tuple[str, ...]
    """Outermost FQNs that this segment runs: modules, and parameters that belong to none of them (a class token)."""

    def absolute(self, relative_fqn: str) -> str:
        return f"{self.prefix}.{relative_fqn}" if self.prefix and relative_fqn else self.prefix or relative_fqn


@dataclass(frozen=True)
class Parameter:
    """One parameter of the model (tied ones once, under the first of their names)."""

    fqn: str
    shape: tuple[int, ...]
    requires_grad: bool

    @property
    def numel(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n


@dataclass(frozen=True, kw_only=True)
class InputTensor:
    """One tensor of a batch."""

    name: str | None
    """Keyword under which forward takes it; ``None``: by position."""
    dtype: str
    shape: tuple[int | Literal["seq_len"], ...]
    """Of one sample, without the dim of the samples."""


@dataclass(frozen=True)
class ModelGraph:
    """A traced model."""

    name: str
    blocks: tuple[Block, ...]
    segments: tuple[Segment, ...]
    params: tuple[Parameter, ...]
    aliases: Mapping[str, str]
    """Further names of tied parameters -> the FQN in ``params``."""
    crossings: tuple[tuple[Value, ...], ...]
    """Per segment but the last: the activations that cross to the next segment and carry gradients (skip connections
    over several segments are listed at each boundary they cross)."""
    resident_bytes: tuple[int, ...]
    """Per segment: bytes of its buffers, and of parameters that no operation reads (as float32)."""
    fixed_seq_len: int | None
    """The only sequence length the graph holds for, when its operations change with the length; else ``None``."""
    has_sequence: bool
    """Whether any shape depends on ``seq_len``."""
    warnings: tuple[str, ...]
    inputs: tuple[InputTensor, ...] = ()
    """What the model is fed; empty where that is no tuple or dict of tensors with samples along their first dim."""

    @property
    def num_parameters(self) -> int:
        return sum(p.numel for p in self.params)

    def canonical(self, segment: Segment, relative_fqn: str) -> str:
        """FQN in ``params`` of a parameter that a segment reads."""
        fqn = segment.absolute(relative_fqn)
        return self.aliases.get(fqn, fqn)
