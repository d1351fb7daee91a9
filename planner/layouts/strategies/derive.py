"""Options of one operation from its factors.

For a factor that the operation leaves free, arguments that hold it are sharded along it; those that do not are whole,
and their gradients partial sums (``B``: the adjoint of broadcasting). If it is contracted, results are partial sums,
and so is what is added to them. An operation that is linear in some arguments takes partial sums of them; one that is
replicated takes gradients that are whole (``R``) or partial sums (``B``), since backward is linear in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import takewhile
from math import prod

from planner.graph import Block
from planner.layouts.atoms import Factors
from planner.layouts.placements import BROADCAST, PARTIAL, REPLICATE, Placement, shard
from planner.layouts.strategies.factors import OpFactors
from planner.layouts.strategies.option import Option


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value holds a leaf atom."""

    dim: int
    chunks: int
    """Product of the leaves before it in that dim."""
    rest: Factors
    """Leaves after it."""


Holders = Mapping[int, Place]
"""By value."""


def derive(factors: OpFactors, inputs: Sequence[int], outputs: Sequence[int], differentiable: Set[int]) -> list[Option]:
    """All options of the operation whose rule ``factors`` has heard.

    Args:
        differentiable: values that have a gradient; of others ``B`` and ``R`` are the same, and ``R`` is written.
    """
    names, contracted = factors.implementations(), factors.contracted()
    made = set(outputs)
    held = {
        leaf: holders
        for leaf, holders in _holders(factors, (*inputs, *outputs)).items()
        # A factor that is in no result has gone where the rule does not say.
        if not factors.atoms.fixed_by(leaf) and (made & holders.keys() or leaf in contracted or leaf in names)
    }
    order = {leaf: i for i, leaf in enumerate(held)}

    def like(leaf: int) -> tuple[object, ...]:
        return held[leaf].keys(), leaf in contracted, names.get(leaf, "local")

    def option(leaf: int, holders: Holders, name: str) -> Option:
        added = {v for values in factors.linear_in for v in values} if leaf in contracted else set()
        run = [leaf]
        for other in _behind(holders.values()):
            if other not in held or like(other) != like(leaf):
                break
            run.append(other)  # what lies behind it in every tensor is cut along with it
        return Option(
            inputs=tuple(
                _shard(holders[v]) if v in holders else PARTIAL if v in added else _whole(v, differentiable)
                for v in inputs
            ),
            outputs=tuple(
                _shard(holders[v]) if v in holders else PARTIAL if leaf in contracted else REPLICATE for v in outputs
            ),
            factor=order[leaf],
            size=prod(map(factors.atoms.size, run)),
            uneven=all(place.chunks == 1 and len(place.rest) == len(run) - 1 for place in holders.values()),
            implementation=name,
        )

    found = replicated(inputs, outputs, differentiable)
    found += (option(leaf, holders, names.get(leaf, "local")) for leaf, holders in held.items())
    for first, second, keepers, name in factors.pairs():
        if first in held and second in _holders(factors, inputs):
            theirs = {v: place for v, place in _holders(factors, inputs)[second].items() if v in keepers}
            found.append(option(first, {**theirs, **held[first]}, name))
    found += _linear(factors, inputs, outputs, differentiable)
    return list(dict.fromkeys(found))


def replicated(inputs: Sequence[int], outputs: Sequence[int], differentiable: Set[int]) -> list[Option]:
    """Everything whole, with whole gradients and with partial sums as gradients."""
    whole = Option((REPLICATE,) * len(inputs), (REPLICATE,) * len(outputs))
    partial = Option(
        tuple(_whole(v, differentiable) for v in inputs), tuple(_whole(v, differentiable) for v in outputs)
    )
    return [whole] if partial == whole else [whole, partial]


def _whole(value: int, differentiable: Set[int]) -> Placement:
    return BROADCAST if value in differentiable else REPLICATE


def _shard(place: Place) -> Placement:
    return shard(place.dim, place.chunks)


def _holders(factors: OpFactors, values: Sequence[int]) -> dict[int, Holders]:
    """Who holds each leaf atom; those that one value holds twice are left out, since no placement can say so."""
    held: dict[int, dict[int, Place]] = {}
    twice = set()
    for value in dict.fromkeys(values):
        for dim, run in enumerate(factors.of(value)):
            chunks, leaves = 1, factors.atoms.leaves(run)
            for i, leaf in enumerate(leaves):
                holders = held.setdefault(leaf, {})
                if value in holders:
                    twice.add(leaf)
                holders[value] = Place(dim, chunks, leaves[i + 1 :])
                chunks *= factors.atoms.size(leaf)
    return {leaf: holders for leaf, holders in held.items() if leaf not in twice}


def _behind(places: Iterable[Place]) -> Factors:
    """Leaves that follow alike in all places."""
    return tuple(leaves[0] for leaves in takewhile(_equal, zip(*(place.rest for place in places), strict=False)))


def _equal(leaves: tuple[int, ...]) -> bool:
    return len(set(leaves)) == 1


def _linear(
    factors: OpFactors, inputs: Sequence[int], outputs: Sequence[int], differentiable: Set[int]
) -> Iterator[Option]:
    for values in factors.linear_in:
        if _sums_pass(factors.block, values, outputs):
            read = tuple(PARTIAL if v in values else _whole(v, differentiable) for v in inputs)
            yield Option(read, (PARTIAL,) * len(outputs))


def _sums_pass(block: Block, values: Sequence[int], outputs: Sequence[int]) -> bool:
    """Whether dtypes let a partial sum through: no truth values or bytes, and no floats that are cut to integers."""
    before = [block.values[v].dtype for v in values]
    after = [block.values[v].dtype for v in outputs]
    cut = any("float" in dtype for dtype in before) and not all("float" in dtype for dtype in after)
    return not {"bool", "uint8"}.intersection((*before, *after)) and not cut
