"""Tensor and sequence parallelism of one block, read off its dim flow.

Which dims can be sharded over the ``tp`` axis is a property of the program: an atom (see `planner.layouts.atoms`)
that some parameter holds, that neither enters nor leaves the block, and that no operation needs whole. Heads of an
attention, the inner width of an MLP or of every expert, the vocabulary of an embedding or of a loss are such atoms;
the residual width is not (it crosses blocks, norms need it). Megatron's column- and row-parallel linears are what
follows: weights that hold the atom in their output dim need no communication, weights that contract it leave a
partial sum.

Communication follows from the same flow (one region = a run of operations on sharded tensors):

* an *entry* is an unsharded activation that a sharded operation reads: its gradient is a partial sum over ``tp``;
* an *exit* is a partial sum: reduced over ``tp`` before anything that is not linear in it.

With sequence parallelism all other activations are sharded along the sequence, so an entry is all-gathered forward
and its gradient reduce-scattered, an exit reduce-scattered forward and its gradient all-gathered (Korthikanti et al.
2022, section 4.2.2). The gathered entry is what torch's DTensor linears save for their backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod

from costmodels.compute import DTYPE_BYTES
from planner import ops
from planner.graph import Block, Op, Ref
from planner.layouts.flow import DimFlow
from planner.layouts.pins import BlockPins, pinned_atoms

REFERENCE_BATCH = 3
REFERENCE_SEQ_LEN = 512
"""Sizes at which dims are factored; sharding is a statement about atoms, so any sizes would do."""


@dataclass(frozen=True)
class ParamShard:
    """How a parameter lies over ``tp``."""

    dim: int
    num_chunks: int
    """Equal tensors stored one after another along ``dim``, each sharded on its own (a fused QKV has 3)."""


@dataclass(frozen=True)
class ShardedSize:
    """A size that ``tp`` has to divide."""

    size: int
    where: str
    """Parameter (relative FQN) that holds it in its shortest dim, for messages: of key/value heads, the key's."""


@dataclass(frozen=True)
class TensorParallel:
    """One block over the ``tp`` axis; empty everywhere when nothing in it can be sharded."""

    params: Mapping[str, ParamShard]
    """By relative FQN; parameters not listed are replicated."""
    sizes: tuple[ShardedSize, ...]
    shard_dim: tuple[int | None, ...]
    """Per value: the dim that ``tp`` divides."""
    sequence_dim: tuple[int | None, ...]
    """Per value: the dim that ``tp`` divides under sequence parallelism, where ``shard_dim`` has none."""
    sharded_ops: frozenset[int]
    """Indices of operations that run on shards."""
    entries: tuple[int, ...]
    exits: tuple[int, ...]
    loss_rows: int | None
    """Value with one element per row of a loss whose classes are sharded; three row-wide reductions make it whole."""
    sequence_parallel: bool
    """Whether the rest of the block can run on a shard of the sequence."""

    def unsharded(self) -> TensorParallel:
        """The same block with all parameters replicated over ``tp``; sequence parallelism stays possible."""
        return replace(
            self,
            params={},
            sizes=(),
            shard_dim=(None,) * len(self.shard_dim),
            sharded_ops=frozenset(),
            entries=(),
            exits=(),
            loss_rows=None,
        )


def analyse(block: Block, *, seq_len: int | None = None, pins: BlockPins | None = None) -> TensorParallel:
    """Find what ``tp`` can shard in a block.

    Args:
        seq_len: the only length it holds for, if there is one.
        pins: parameters whose placement is settled.

    Raises:
        UsageError: pins that cannot be obeyed, or not together (`planner.layouts.pins`).
    """
    shapes = [v.shape(REFERENCE_BATCH, seq_len or REFERENCE_SEQ_LEN) for v in block.values]
    flow = DimFlow(block, shapes).run()
    chosen = _choose(flow, pins or {})
    shard_dim = tuple(_dim_holding(flow, v, chosen) for v in range(len(block.values)))
    sharded_ops = frozenset(
        i for i, op in enumerate(block.ops) if any(shard_dim[v] is not None for v in (*op.inputs, *op.outputs))
    )
    sequence = _sequence_atoms(flow)
    whole = all(_dim_holding(flow, v, sequence) is not None for v in _boundary(block, shapes))
    entries, exits = _entries(flow, shard_dim, sharded_ops), _exits(flow, chosen)
    gathered = _computed_gathered(block, entries, exits)
    free = all(flow.atoms.fixed_by(atom) <= sharded_ops | gathered for atom in sequence)
    return TensorParallel(
        params=_param_shards(flow, chosen),
        sizes=_sizes(flow, chosen),
        shard_dim=shard_dim,
        sequence_dim=tuple(_dim_holding(flow, v, sequence) for v in range(len(block.values))),
        sharded_ops=sharded_ops,
        entries=entries,
        exits=exits,
        loss_rows=_loss_rows(flow, shard_dim),
        sequence_parallel=bool(sequence) and whole and free,
    )


def _computed_gathered(block: Block, entries: tuple[int, ...], exits: tuple[int, ...]) -> frozenset[int]:
    """Operations that may run on the whole sequence although activations lie along it: integer work (routing), which is
    small, and reordering of what follows from a gathered entry."""
    storages = {block.values[v].storage for v in entries}
    region = {v for v, value in enumerate(block.values) if value.storage in storages}
    found = set()
    for i, op in enumerate(block.ops):
        floats = [v for v in op.inputs if "float" in block.values[v].dtype]
        if op.phase == "forward" and region.intersection(op.inputs):
            region.update(set(op.outputs).difference(exits))
        if not floats or (op.name in ops.SHUFFLES and region.issuperset(floats)):
            found.add(i)
    return frozenset(found)


def _boundary(block: Block, shapes: Sequence[tuple[int, ...]]) -> Iterator[int]:
    return (v for v in (*block.inputs, *block.outputs) if shapes[v])


def _atoms_of(flow: DimFlow, value: int) -> Iterator[tuple[int, int]]:
    """(dim, leaf atom) of a value."""
    for d, factors in enumerate(flow.of(value)):
        for atom in flow.atoms.leaves(factors):
            yield d, atom


def _choose(flow: DimFlow, pins: BlockPins) -> frozenset[int]:
    """Atoms to shard: those that are pinned, then those that carry most FLOP first, never two in one tensor."""
    crossing = {atom for v in _boundary(flow.block, flow.shapes) for _, atom in _atoms_of(flow, v)}
    crossing.update(atom for factors in flow.born for atom in flow.atoms.leaves(factors))
    held = {v: {atom for _, atom in _atoms_of(flow, v)} for v in range(len(flow.block.values))}
    weight: dict[int, list[int]] = {}
    for _, v in flow.block.params:
        for atom in held[v]:
            if atom not in crossing and not flow.atoms.fixed_by(atom):
                weight.setdefault(atom, [0, 0])[1] += prod(flow.shapes[v])
    for op in flow.block.ops:
        flop = ops.flop(op, flow.shapes)
        if flop:
            for atom in set().union(*(held[v] for v in (*op.inputs, *op.outputs))) & weight.keys():
                weight[atom][0] += flop
    total = sum(prod(flow.shapes[v]) for _, v in flow.block.params)
    eligible = weight.keys()
    # A sharded lookup pays a reduction of its whole result: only for the table that dominates memory.
    weight = {atom: w for atom, w in weight.items() if w[0] or 2 * w[1] > total}
    forced, forbidden = pinned_atoms(flow, pins, eligible)
    chosen = set(forced)
    for atom in sorted(weight.keys() - forbidden, key=lambda a: (*weight[a], a), reverse=True):
        if not any(atom in atoms and atoms & chosen for atoms in held.values()):
            chosen.add(atom)
    return frozenset(chosen)


def _dim_holding(flow: DimFlow, value: int, atoms: frozenset[int]) -> int | None:
    return next((d for d, atom in _atoms_of(flow, value) if atom in atoms), None)


def _sequence_atoms(flow: DimFlow) -> frozenset[int]:
    """Leaf atoms of boundary dims that grow with the sequence and not with the batch."""
    found: set[int] = set()
    for v in _boundary(flow.block, flow.shapes):
        dims = flow.block.values[v].dims
        found |= {atom for d, atom in _atoms_of(flow, v) if dims[d].slope and not dims[d].per_batch}
    return frozenset(found)


def _param_shards(flow: DimFlow, chosen: frozenset[int]) -> dict[str, ParamShard]:
    shards = {}
    for fqn, v in flow.block.params:
        dim = _dim_holding(flow, v, chosen)
        if dim is not None:
            leaves = flow.atoms.leaves(flow.of(v)[dim])
            outer = next(i for i, atom in enumerate(leaves) if atom in chosen)
            shards[fqn] = ParamShard(dim=dim, num_chunks=prod(flow.atoms.size(a) for a in leaves[:outer]))
    return shards


def _sizes(flow: DimFlow, chosen: frozenset[int]) -> tuple[ShardedSize, ...]:
    where: dict[int, tuple[int, str]] = {}
    for fqn, v in flow.block.params:
        for d, atom in _atoms_of(flow, v):
            if atom in chosen and flow.shapes[v][d] < where.get(atom, (inf, ""))[0]:
                where[atom] = flow.shapes[v][d], fqn
    return tuple(ShardedSize(flow.atoms.size(atom), fqn) for atom, (_, fqn) in where.items())


def _producers(block: Block) -> dict[int, Op]:
    return {v: op for op in block.ops if op.phase == "forward" for v in op.outputs}


def _bytes(flow: DimFlow, value: int) -> int:
    return prod(flow.shapes[value]) * DTYPE_BYTES[flow.block.values[value].dtype]


def _differentiable(block: Block) -> set[int]:
    """Forward floating point activations that depend on the block's differentiable inputs or trained parameters."""
    params = dict(block.params)
    found = {*block.inputs, *(params[fqn] for fqn, _ in block.param_grads if fqn in params)}
    for op in block.ops:
        if op.phase == "forward" and found.intersection(op.inputs):
            found.update(v for v in op.outputs if "float" in block.values[v].dtype)
    held = {block.values[v].storage for v in params.values()}
    return {v for v in found if block.values[v].storage not in held}


def _entries(flow: DimFlow, shard_dim: tuple[int | None, ...], sharded_ops: frozenset[int]) -> tuple[int, ...]:
    block = flow.block
    activations, producers = _differentiable(block), _producers(block)
    found: dict[int, int] = {}
    for i in sorted(sharded_ops):
        op = block.ops[i]
        if op.phase == "backward" or (ops.is_free(op, block) and op.name != "expand"):
            continue  # a view changes nothing, but for one key head that is expanded to all (sharded) query heads
        partial = any(shard_dim[v] is None for v in op.outputs) and i in flow.contracted
        for value in op.inputs:
            if value in activations and shard_dim[value] is None and not (partial and op.name not in ops.COMPUTE_HEAVY):
                source = smallest = value
                while source in producers and producers[source].name in ops.COPIES:
                    source = producers[source].inputs[0]
                    if source in activations and _bytes(flow, source) <= _bytes(flow, smallest):
                        smallest = source
                found.setdefault(block.values[smallest].storage, smallest)
    return tuple(sorted(found.values()))


def _exits(flow: DimFlow, chosen: frozenset[int]) -> tuple[int, ...]:
    block = flow.block
    readers: dict[int, list[Op]] = {}
    for op in block.ops:
        if op.phase == "forward":
            for v in op.inputs:
                readers.setdefault(v, []).append(op)
    sources = [
        block.ops[i].outputs[0]
        for i, atoms in flow.contracted.items()
        if block.ops[i].phase == "forward" and chosen.intersection(flow.atoms.leaves(atoms))
    ]
    partial = set(sources)
    for op in block.ops:
        if op.name in ops.LINEAR and partial.intersection(op.inputs):
            partial.update(op.outputs)
    found = []
    for source in sources:
        value = smallest = source
        while len(readers.get(value, ())) == 1 and _linear(readers[value][0], value, partial):
            value = readers[value][0].outputs[0]
            if _bytes(flow, value) < _bytes(flow, smallest):
                smallest = value
        found.append(smallest)
    return tuple(found)


def _linear(op: Op, value: int, partial: set[int]) -> bool:
    """Whether a call on a partial sum is the partial sum of calls: linear in it, with no other partial operand."""
    operands = [arg.value for arg in op.args if isinstance(arg, Ref)]
    if op.name not in ops.LINEAR or operands.count(value) != 1 or len(partial.intersection(op.inputs)) != 1:
        return False
    return op.name != "div" or operands[0] == value


def _loss_rows(flow: DimFlow, shard_dim: tuple[int | None, ...]) -> int | None:
    for op in flow.block.ops:
        if op.name == "nll_loss_forward" and shard_dim[op.inputs[0]] is not None:
            return op.inputs[1]
    return None
