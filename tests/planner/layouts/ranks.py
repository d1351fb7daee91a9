"""Runs a traced block on real numbers, whole or on the ranks of a ``tp`` axis, as a `TensorParallel` says it may lie.

Every operation is executed by ATen itself, in float64, on each rank's own tensors. A value is on every rank *whole*, a
*shard* along ``shard_dim``, a shard along the *sequence*, or a *partial* sum. What must be communicated is not taken
from the layout but found here: an operation that is not linear in a partial sum makes it be reduced, one that needs a
sequence whole makes it be gathered. So claims about layouts and about communication are both put to the test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from planner.graph import Block, Op, Ref
from planner.layouts.flow import DimFlow
from planner.layouts.tensor_parallel import TensorParallel, _choose, _sequence_atoms
from planner.ops import COPIES, SHUFFLES
from tests.planner.layouts.aten import ALLOCATIONS, execute

LINEAR = COPIES | {"neg", "sum", "slice", "slice_backward", "select_backward", "index_add", "scatter_add", "flip"}


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
        self.shard = self._cuts(flow, _choose(flow, {}), self.layout.shard_dim)
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
                assert torch.allclose(other, parts[0], rtol=1e-9, equal_nan=True), f"value {v} differs between ranks"
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
        shuffle = op.name in SHUFFLES or not any("float" in self.block.values[v].dtype for v in op.inputs)
        along = self.sequence_parallel and not sharded and not shuffle
        beside = [v for v in inputs if along and v in self.sequence and v not in partial]
        linear = not sharded and self._linear(op, partial, inputs)
        if partial and linear and beside and _size(self, beside) < _size(self, partial) / 4:
            along = False  # a few weights beside a large partial sum: they are gathered, it is not reduced yet
        elif partial and (beside or not linear):
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
        results = self._loss(op) if sharded else None
        if results is None and sharded and "shard" not in kinds:  # an operation of its own that keeps its share
            whole = [self._local(op, r, dict.fromkeys(made, "whole")) for r in range(self.tp)]
            results = [tuple(self._share(v, t, r) for v, t in zip(made, ts, strict=True)) for r, ts in enumerate(whole)]
        elif results is None:
            results = [self._local(op, r, made) for r in range(self.tp)]
        for i, v in enumerate(op.outputs):
            self.tensors[v] = [result[i] for result in results]

    def _share(self, v: int, whole: Tensor, rank: int) -> Tensor:
        return self.shard[v].take(whole, rank, self.tp) if self.kinds[v] == "shard" else whole

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


def _size(ranks: Ranks, values: list[int]) -> int:
    return sum(prod(ranks.shapes[v]) for v in values)


def _lookup(table: Tensor, index: Tensor) -> Tensor:
    inside = (index >= 0) & (index < len(table))
    return table[index.clamp(0, len(table) - 1)] * inside.unsqueeze(-1)


def _lookup_backward(grad: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    inside = (index >= 0) & (index < shape[0])
    rows = (grad * inside.unsqueeze(-1)).flatten(0, -2)
    return torch.zeros(shape, dtype=grad.dtype).index_add(0, index.clamp(0, shape[0] - 1).flatten(), rows)
