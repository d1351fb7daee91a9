"""Tensor parallelism of a whole model: which degrees are legal, and the layout of every parameter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.graph import ModelGraph
from planner.job import Pin
from planner.layouts.data_parallel import shard_dim
from planner.layouts.experts import find_experts
from planner.layouts.pins import BlockPins, block_pins, matches
from planner.layouts.tensor_parallel import ParamShard, TensorParallel, analyse
from planner.plan import Candidate, ParamLayout


@dataclass(frozen=True)
class ModelLayouts:
    """What ``tp`` can do to each distinct block of a model."""

    graph: ModelGraph
    blocks: tuple[TensorParallel, ...]
    pins: tuple[BlockPins, ...] = ()
    """Per block, parameters whose placement the user settled."""

    def obstacle(self, tp: int) -> str | None:
        """Why ``tp`` is illegal, with its numbers; ``None`` when it is legal.

        ``tp`` must divide every sharded size of the repeated blocks. Embedding and head stay whole when it does not
        divide theirs (GPT-2's 50,257 tokens).
        """
        repeated = {s.block: s for s in reversed(self.graph.segments) if s.prefix}
        if tp > 1 and not any(layout.params for layout in self.blocks):
            return f"tp {tp}: no operation of the model can be sharded"
        for index, segment in reversed(repeated.items()):
            for size in self.blocks[index].sizes:
                if size.size % tp:
                    return f"tp {tp} does not divide {size.size} at {segment.absolute(size.where)}"
        if tp > 1:
            at = self.at(tp)
            for segment in self.graph.segments:
                for fqn, pinned in (self.pins[segment.block] if self.pins else {}).items():
                    if pinned["tp"].kind == "S" and fqn not in at[segment.block].params:
                        return f"tp {tp} cannot shard {segment.absolute(fqn)} as it is pinned, tp:{pinned['tp']}"
        return None

    def at(self, tp: int) -> tuple[TensorParallel, ...]:
        """Layout per distinct block at a legal degree."""
        return _agreed(
            self.graph,
            [
                layout if all(size.size % tp == 0 for size in layout.sizes) else layout.unsharded()
                for layout in self.blocks
            ],
        )

    def sequence_parallel(self, tp: int, seq_len: int) -> bool:
        """Whether activations between sharded regions can lie along the sequence: it costs no more traffic (Korthikanti
        et al. 2022, section 4.2.2) and less memory, so it is used whenever it is legal."""
        return (
            tp > 1
            and self.graph.has_sequence
            and seq_len % tp == 0
            and all(self.blocks[segment.block].sequence_parallel for segment in self.graph.segments)
        )


def analyse_model(graph: ModelGraph, pins: Sequence[Pin] = ()) -> ModelLayouts:
    """Analyse every distinct block; parameters on which two blocks disagree (tied ones) are left whole in both.

    Raises:
        UsageError: pins that cannot be obeyed, or not together (`planner.layouts.pins`).
    """
    pinned = block_pins(graph, pins)
    blocks = [
        analyse(block, seq_len=graph.fixed_seq_len, pins=settled)
        for block, settled in zip(graph.blocks, pinned, strict=True)
    ]
    return ModelLayouts(graph=graph, blocks=_agreed(graph, blocks), pins=pinned)


def _agreed(graph: ModelGraph, blocks: list[TensorParallel]) -> tuple[TensorParallel, ...]:
    """Leave both blocks whole wherever two read one parameter but shard it differently, until none do."""
    seen: dict[str, tuple[ParamShard | None, int]] = {}
    for segment in graph.segments:
        for relative, _ in graph.blocks[segment.block].params:
            shard = blocks[segment.block].params.get(relative)
            other, index = seen.setdefault(graph.canonical(segment, relative), (shard, segment.block))
            if shard != other:
                whole = (index, segment.block)
                return _agreed(graph, [b.unsharded() if i in whole else b for i, b in enumerate(blocks)])
    return tuple(blocks)


def param_layouts(layouts: ModelLayouts, candidate: Candidate) -> tuple[ParamLayout, ...]:
    """Every parameter exactly once, equal ones folded into a pattern whose ``*`` stands for one path component."""
    graph = layouts.graph
    at = layouts.at(candidate.tp)
    shards: dict[str, ParamShard | None] = {}
    experts = expert_params(graph) if candidate.ep > 1 else frozenset()
    for segment in graph.segments:
        for relative, _ in graph.blocks[segment.block].params:
            shards.setdefault(graph.canonical(segment, relative), at[segment.block].params.get(relative))
    exact = {
        p.fqn: _of_expert(candidate, p.shape)
        if p.fqn in experts
        else _placements(candidate, shards.get(p.fqn), p.shape)
        for p in graph.params
    }
    return tuple(
        ParamLayout(pattern=pattern, placements=placements, num_chunks=chunks)
        for pattern, (placements, chunks) in _fold(exact).items()
    )


def expert_params(graph: ModelGraph) -> frozenset[str]:
    """FQNs of the parameters of routed experts: ``ep`` divides their dim 0."""
    found = {b: experts.params for b, block in enumerate(graph.blocks) if (experts := find_experts(block))}
    return frozenset(graph.canonical(s, relative) for s in graph.segments for relative in found.get(s.block, ()))


Layout = tuple[Mapping[str, str], int]


def _placements(candidate: Candidate, shard: ParamShard | None, shape: tuple[int, ...]) -> Layout:
    """Over ``dp_shard`` and ``cp`` as `planner.layouts.data_parallel` says, after ``tp``; a tensor without dims stays
    whole."""
    tp, chunks, local = "R", 1, shape
    if shard is not None and candidate.tp > 1:
        tp, chunks = f"S({shard.dim})", shard.num_chunks
        local = (*shape[: shard.dim], shape[shard.dim] // candidate.tp, *shape[shard.dim + 1 :])
    return {"dp_replicate": "R", **_state(candidate, local, candidate.state_shard), "tp": tp}, chunks


def _of_expert(candidate: Candidate, shape: tuple[int, ...]) -> Layout:
    """Over ``ep``, and over the devices that hold the same experts; never over ``tp``, whose devices hold others."""
    local = (shape[0] // candidate.ep, *shape[1:])
    return {"dp_replicate": "R", **_state(candidate, local, candidate.expert_shard), "tp": "R", "ep": "S(0)"}, 1


def _state(candidate: Candidate, local: tuple[int, ...], shards: int) -> dict[str, str]:
    sharded = f"S({shard_dim(local, shards)})" if candidate.zero_stage and local else "R"
    return {
        "dp_shard": sharded if candidate.dp_shard > 1 else "R",
        "cp": sharded if candidate.cp > 1 else "R",
    }


def _fold(exact: Mapping[str, Layout]) -> dict[str, Layout]:
    """Replace numeric path components by ``*`` wherever the pattern matches only these parameters and all share one
    layout."""
    groups: dict[str, list[str]] = {}
    for fqn in exact:
        groups.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", fqn), []).append(fqn)
    folded: dict[str, Layout] = {}
    for pattern, members in groups.items():
        alone = sum(matches(pattern, fqn) for fqn in exact) == len(members)
        same = alone and all(exact[fqn] == exact[members[0]] for fqn in members)
        folded.update({pattern: exact[members[0]]} if same else {fqn: exact[fqn] for fqn in members})
    return folded
