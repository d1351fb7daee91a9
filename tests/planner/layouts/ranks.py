"""Runs a traced block on real numbers, whole or on the ranks of a ``tp`` axis, as a `TensorParallel` says it may lie.

Every operation is executed by ATen itself, in float64, on each rank's own tensors. A value is on every rank *whole*, a
*shard* along ``shard_dim``, a shard along the *sequence*, or a *partial* sum. What must be communicated is not taken
from the layout but found here: an operation that is not linear in a partial sum makes it be reduced, one that needs a
sequence whole makes it be gathered. So claims about layouts and about communication are both put to the test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor

from planner.graph import Block, Op, Ref
from planner.layouts.rules import DimFlow
from planner.layouts.tensor_parallel import (
    COPIES,
    SHUFFLES,
    TensorParallel,
    _choose,
    _only_integers,
    _sequence_atoms,
)

ALLOCATIONS = {"new_zeros", "new_empty", "new_ones", "new_full", "zeros_like", "ones_like", "empty_like", "full_like"}
LINEAR = COPIES | {"neg", "sum", "slice", "slice_backward", "select_backward", "index_add", "scatter_add", "flip"}
EPS = 1e-5
SIZED = ALLOCATIONS | {"slice_backward", "select_backward"}


@dataclass(frozen=True)
class Cut:
    """Which part of a dim a rank holds: its share of each of ``chunks`` equal runs."""

    dim: int
    chunks: int

    def take(self, whole: Tensor, rank: int, tp: int) -> Tensor:
        runs = whole.unflatten(self.dim, (self.chunks, -1))
        size = runs.shape[self.dim + 1] // tp
        return runs.narrow(self.dim + 1, rank * size, size).flatten(self.dim, self.dim + 1).clone()

    def join(self, parts: list[Tensor]) -> Tensor:
        runs = [part.unflatten(self.dim, (self.chunks, -1)) for part in parts]
        return torch.cat(runs, dim=self.dim + 1).flatten(self.dim, self.dim + 1)


@dataclass
class Ranks:
    """One execution; ``given`` holds the whole tensor of every value that the block does not make."""

    block: Block
    layout: TensorParallel
    tp: int
    sequence_parallel: bool
    batch: int
    seq_len: int
    given: dict[int, Tensor]
    tensors: dict[int, list[Tensor]] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    reduced: dict[str, list[int]] = field(default_factory=lambda: {"forward": [], "backward": []})
    gathered: dict[str, list[int]] = field(default_factory=lambda: {"forward": [], "backward": []})

    def run(self) -> Ranks:
        self.shapes = [v.shape(self.batch, self.seq_len) for v in self.block.values]
        flow = DimFlow(self.block, self.shapes).run()
        self.shard = self._cuts(flow, _choose(flow), self.layout.shard_dim)
        self.sequence = self._cuts(flow, _sequence_atoms(flow), self.layout.sequence_dim)
        for v, whole in self.given.items():
            cut = self.shard.get(v) if self.tp > 1 else None
            self.kinds[v] = "shard" if cut else "whole"
            self.tensors[v] = [cut.take(whole, r, self.tp) if cut else whole.clone() for r in range(self.tp)]
        for index, op in enumerate(self.block.ops):
            self._step(index, op)
            for v in op.outputs:
                if self.kinds[v] == "partial" and v in self.layout.exits:
                    self._reduce(v, "forward")
        return self

    def _cuts(self, flow: DimFlow, atoms: frozenset[int], claimed: tuple[int | None, ...]) -> dict[int, Cut]:
        cuts = {}
        for v, dim in enumerate(claimed):
            if dim is not None:
                leaves = flow.atoms.leaves(flow.of(v)[dim])
                outer = next(i for i, atom in enumerate(leaves) if atom in atoms)
                cuts[v] = Cut(dim, prod(flow.atoms.size(atom) for atom in leaves[:outer]))
        return cuts

    def whole(self, v: int) -> Tensor:
        """A value put together again from all ranks."""
        kind, parts = self.kinds[v], self.tensors[v]
        if kind == "partial":
            return torch.stack(parts).sum(dim=0)
        if kind == "whole":
            for other in parts[1:]:
                torch.testing.assert_close(other, parts[0], equal_nan=True, msg=f"value {v} differs between ranks")
            return parts[0]
        return (self.shard if kind == "shard" else self.sequence)[v].join(parts)

    def _reduce(self, v: int, phase: str) -> None:
        self.reduced[phase].append(v)
        self._set(v, self.whole(v))

    def _set(self, v: int, whole: Tensor) -> None:
        """Lay a whole tensor along the sequence where sequence parallelism has it, else on every rank."""
        cut = self.sequence.get(v) if self.sequence_parallel else None
        self.kinds[v] = "sequence" if cut else "whole"
        self.tensors[v] = [cut.take(whole, r, self.tp) if cut else whole.clone() for r in range(self.tp)]

    def _read(self, v: int, *, along_sequence: bool, phase: str) -> str:
        """Bring an argument into the form that an operation reads; its kind."""
        if along_sequence and self.kinds[v] == "whole" and v in self.sequence:
            self._set(v, self.tensors[v][0])
        elif not along_sequence and self.kinds[v] == "sequence":
            self.gathered[phase].append(v)
            whole = self.whole(v)
            self.kinds[v], self.tensors[v] = "whole", [whole.clone() for _ in range(self.tp)]
        return self.kinds[v]

    def _step(self, index: int, op: Op) -> None:
        inputs = [v for v in op.inputs if not (op.name in ALLOCATIONS and v == op.inputs[0])]
        partial = [v for v in inputs if self.kinds[v] == "partial"]
        sharded = self.tp > 1 and index in self.layout.sharded_ops
        shuffle = op.name in SHUFFLES or _only_integers(op, self.block)
        along = self.sequence_parallel and not sharded and not shuffle
        beside_sequence = along and any(v in self.sequence for v in inputs if v not in partial)
        if partial and (sharded or beside_sequence or not self._linear(op, partial, inputs)):
            for v in partial:
                self._reduce(v, op.phase)
            partial = []
        kinds = {self._read(v, along_sequence=along, phase=op.phase) for v in inputs}
        made = {}
        for v in op.outputs:
            if sharded:
                reads_shard = "shard" in kinds and op.name != "nll_loss_forward"
                made[v] = "shard" if v in self.shard else "partial" if reads_shard else "whole"
            elif partial:
                made[v] = "partial"
            elif "sequence" in kinds:
                made[v] = "sequence" if v in self.sequence else "partial"
            else:
                made[v] = "whole"
        self.kinds.update(made)
        self.now = (index, op, [(v, self.kinds[v], self.shapes[v]) for v in op.inputs], made)
        results = self._loss(op) if sharded else None
        if results is None:
            results = [self._local(op, r, made) for r in range(self.tp)]
        for i, v in enumerate(op.outputs):
            self.tensors[v] = [result[i] for result in results]

    def _linear(self, op: Op, partial: list[int], inputs: list[int]) -> bool:
        if op.name in LINEAR:
            return True
        if op.name in {"mul", "div"}:
            return len(partial) == 1 and (op.name == "mul" or op.inputs[0] == partial[0])
        return op.name in {"add", "sub", "cat"} and set(partial) == set(inputs)

    def _local_shape(self, v: int, kind: str) -> tuple[int, ...]:
        cut = {"shard": self.shard, "sequence": self.sequence}.get(kind, {}).get(v)
        shape = list(self.shapes[v])
        if cut:
            shape[cut.dim] //= self.tp
        return tuple(shape)

    def _local(self, op: Op, rank: int, made: dict[int, str]) -> tuple[Tensor, ...]:
        shapes = [self._local_shape(v, kind) for v, kind in made.items()]
        args = [self._arg(arg, rank) for arg in op.args]
        first = self.kinds[op.inputs[0]] if op.inputs else "whole"
        if op.name == "addmm" and made[op.outputs[0]] == "partial" and rank:
            args[0] = torch.zeros_like(args[0])  # a bias is added once, not once per rank
        if op.name == "embedding" and first == "shard" and self.shard[op.inputs[0]].dim == 0:
            return (_lookup(args[0], args[1] - rank * args[0].shape[0]),)
        if op.name == "embedding_dense_backward":
            offset = rank * shapes[0][0] if made[op.outputs[0]] == "shard" and self.shard[op.outputs[0]].dim == 0 else 0
            return (_lookup_backward(args[0], args[1] - offset, shapes[0]),)
        out = execute(op, args, shapes)
        if op.name == "nll_loss_forward" and made[op.outputs[0]] == "partial":
            out = (out[0] / self.tp, out[1])  # a mean over this rank's tokens
        return out

    def _arg(self, arg: Any, rank: int) -> Any:
        if isinstance(arg, Ref):
            return self.tensors[arg.value][rank]
        if isinstance(arg, tuple):
            return [self._arg(a, rank) for a in arg]
        return arg

    def _loss(self, op: Op) -> list[tuple[Tensor, ...]] | None:
        """Cross-entropy over shards of the classes: the few operations that look across ranks."""
        parts = [self.tensors[v] for v in op.inputs]
        if op.name == "_log_softmax":
            top = torch.stack([x.amax(1, keepdim=True) for x in parts[0]]).amax(0)
            total = torch.stack([(x - top).exp().sum(1, keepdim=True) for x in parts[0]]).sum(0)
            return [(x - top - total.log(),) for x in parts[0]]
        if op.name == "_log_softmax_backward_data":
            rows = torch.stack([grad.sum(1, keepdim=True) for grad in parts[0]]).sum(0)
            return [(grad - out.exp() * rows,) for grad, out in zip(*parts, strict=True)]
        if op.name not in {"nll_loss_forward", "nll_loss_backward"}:
            return None
        targets = parts[1 if op.name == "nll_loss_forward" else 2][0]
        log_probs = parts[0 if op.name == "nll_loss_forward" else 1]
        size = log_probs[0].shape[1]
        hits = [torch.nn.functional.one_hot(targets, self.tp * size).double()[:, r * size :][:, :size]
                for r in range(self.tp)]  # fmt: skip
        if op.name == "nll_loss_forward":
            loss = -torch.stack([(x * hit).sum() for x, hit in zip(log_probs, hits, strict=True)]).sum() / len(targets)
            return [(loss, torch.tensor(float(len(targets)), dtype=torch.float64))] * self.tp
        return [(-hit * parts[0][0] / len(targets),) for hit in hits]


def _lookup(table: Tensor, index: Tensor) -> Tensor:
    inside = (index >= 0) & (index < len(table))
    return table[index.clamp(0, len(table) - 1)] * inside.unsqueeze(-1)


def _lookup_backward(grad: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    inside = (index >= 0) & (index < shape[0])
    rows = (grad * inside.unsqueeze(-1)).flatten(0, -2)
    return torch.zeros(shape, dtype=grad.dtype).index_add(0, index.clamp(0, shape[0] - 1).flatten(), rows)


def execute(op: Op, args: list[Any], shapes: list[tuple[int, ...]]) -> tuple[Tensor, ...]:
    """One call on plain tensors, its size arguments replaced by the sizes of its results."""
    if op.name in {"view", "_unsafe_view", "reshape"}:
        return (args[0].reshape(shapes[0]),)
    if op.name == "expand":
        return (args[0].expand(shapes[0]),)
    if op.name == "attention":
        return _attention(*args)
    if op.name == "attention_backward":
        return _attention_backward(*args)
    if op.name == "rms_norm":
        root = args[0].square().mean(-1, keepdim=True).add(EPS).rsqrt()
        return args[0] * root * args[1], root
    if op.name == "rms_norm_backward":
        grad, x, root, weight, _ = args
        scaled = grad * weight
        along = (scaled * x).mean(-1, keepdim=True) * x * root**3
        return scaled * root - along, (grad * x * root).flatten(0, -2).sum(0)
    if op.name == "_grouped_mm":
        return (_grouped(*args[:3]),)
    if op.name == "_to_copy":
        dtype = next((_plain(a) for a in args[1:] if isinstance(_plain(a), torch.dtype)), args[0].dtype)
        return (args[0].to(dtype, copy=True),)
    if op.name in SIZED and not op.name.endswith("_like"):
        args[1] = shapes[0]
    if op.name.startswith("split"):
        dim = args[2] if len(args) > 2 else 0
        sizes = [shape[dim] for shape in shapes]
        args[1] = sizes if op.name == "split_with_sizes" else sizes[0]
    if op.name == "convolution_backward":
        args[3] = [args[2].shape[0]]
    positional, keywords = _bind(op, args)
    result = _overload(op)(*positional, **keywords)
    found = result if isinstance(result, tuple | list) else (result,)
    return tuple(t for t in found if isinstance(t, Tensor) and t is not None)


def _overload(op: Op) -> Any:
    name, _, overload = op.target.partition(".")
    return getattr(getattr(torch.ops.aten, name), overload)


def _bind(op: Op, args: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments again, from the run in which capture keeps them."""
    schema = _overload(op)._schema.arguments
    places = sum(not a.kwarg_only for a in schema)
    rest = [a.name for a in schema if a.kwarg_only]
    count = next((i for i, a in enumerate(args) if isinstance(_plain(a), _OPTIONS) and rest), places)
    keywords: dict[str, Any] = {}
    for value in map(_plain, args[min(count, places) :]):
        kind = next((name for option, name in _OPTION_NAMES.items() if isinstance(value, option)), None)
        name = kind if kind in rest else rest[0]
        keywords[name] = value
        rest = rest[rest.index(name) + 1 :]
    return [_plain(a) for a in args[: min(count, places)]], keywords


_OPTIONS = (torch.dtype, torch.layout, torch.device, torch.memory_format)
_OPTION_NAMES = {
    torch.dtype: "dtype", torch.layout: "layout", torch.device: "device", torch.memory_format: "memory_format",
    bool: "pin_memory",
}  # fmt: skip


def _plain(arg: Any) -> Any:
    """torch's own objects again; every floating point type is float64 here."""
    if not isinstance(arg, str):
        return arg
    if arg == "cpu":
        return torch.device("cpu")
    found = getattr(torch, arg.removeprefix("torch."), arg) if arg.startswith("torch.") else arg
    return torch.float64 if isinstance(found, torch.dtype) and found.is_floating_point else found


def _scores(q: Tensor, k: Tensor, mask: Any, causal: bool) -> Tensor:
    scores = q @ k.transpose(2, 3) / sqrt(q.shape[3])
    if mask is not None:
        scores = scores + mask
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[2:], dtype=torch.bool).triu(1), float("-inf"))
    return scores


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Any, causal: bool) -> tuple[Tensor, ...]:
    scores = _scores(q, k, mask, causal)
    return scores.softmax(3) @ v, scores.logsumexp(3)


def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Any, causal: bool, _: bool
) -> tuple[Tensor, ...]:
    p = (_scores(q, k, mask, causal) - lse.unsqueeze(3)).exp()
    ds = p * (grad @ v.transpose(2, 3) - (grad * out).sum(3, keepdim=True)) / sqrt(q.shape[3])
    return ds @ k, ds.transpose(2, 3) @ q, p.transpose(2, 3) @ grad


def _grouped(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    starts = [0, *ends.tolist()[:-1]]
    runs = [slice(start, end) for start, end in zip(starts, ends.tolist(), strict=True)]
    if b.dim() == 3:
        return torch.cat([a[run] @ b[g] for g, run in enumerate(runs)])
    return torch.stack([a[:, run] @ b[run] for run in runs])
