"""What a user pins: from patterns of FQNs to the factors of a block that tensor parallelism must, or may not, shard."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from planner.errors import UsageError
from planner.graph import ModelGraph
from planner.job import Pin
from planner.layouts.flow import DimFlow
from planner.layouts.placements import Placement, parse

BlockPins = Mapping[str, Mapping[str, Placement]]
"""By relative FQN of a parameter, by mesh axis: its placement, ``R`` or ``S``."""


def matches(pattern: str, fqn: str) -> bool:
    """Whether a pattern covers a parameter: ``*`` stands for exactly one path component."""
    parts, names = pattern.split("."), fqn.split(".")
    return len(parts) == len(names) and all(p in ("*", n) for p, n in zip(parts, names, strict=True))


def placement(pin: Pin, axes: Sequence[str]) -> tuple[str, Placement]:
    """Axis and placement of a pin's layout, ``tp:S(1)`` or ``tp:R``.

    Args:
        axes: those that layouts can be pinned over.

    Raises:
        UsageError: another axis, or no placement of a parameter.
    """
    axis, _, text = pin.layout.partition(":")
    if axis not in axes:
        raise UsageError(
            f"pin {pin.fqn}: layout {pin.layout!r} names no axis that layouts are pinned over here; write "
            f"{' or '.join(f'{name}:S(1)' for name in axes)}, or R for whole."
        )
    try:
        found = parse(text)
    except ValueError as error:
        raise UsageError(f"pin {pin.fqn}: {error}") from None
    if found.kind not in ("R", "S"):
        raise UsageError(
            f"pin {pin.fqn}: a parameter lies whole ({axis}:R) or sharded ({axis}:S(dim)), not as {found}."
        )
    return axis, found


def block_pins(graph: ModelGraph, pins: Sequence[Pin], axes: Sequence[str] = ("tp",)) -> tuple[BlockPins, ...]:
    """Pins of every distinct block.

    A pin names parameters, or modules for their ``weight``; ``*`` stands for one path component.

    Raises:
        UsageError: a pin that fits no parameter, contradicts another, or says of some calls of a block what it does not
            say of the others.
    """
    wanted: dict[tuple[str, str], tuple[Placement, Pin]] = {}
    names = {parameter.fqn: parameter.fqn for parameter in graph.params} | dict(graph.aliases)
    for pin in pins:
        axis, place = placement(pin, axes)
        found = {own for name, own in names.items() if matches(pin.fqn, name) or matches(f"{pin.fqn}.weight", name)}
        if not found:
            raise UsageError(f"pin {pin.fqn} fits no parameter of {graph.name}.{_nearest(pin.fqn, names)}")
        for fqn in found:
            other, earlier = wanted.setdefault((fqn, axis), (place, pin))
            if other != place:
                raise UsageError(
                    f"pins exclude each other: {fqn} is to lie as {earlier.layout} ({earlier.fqn}) and as {pin.layout} "
                    f"({pin.fqn})."
                )
    blocks: dict[int, dict[str, dict[str, Placement]]] = {}
    for segment in graph.segments:
        for relative, _ in graph.blocks[segment.block].params:
            fqn = graph.canonical(segment, relative)
            settled = {axis: wanted[fqn, axis][0] for axis in axes if (fqn, axis) in wanted}
            if blocks.setdefault(segment.block, {}).setdefault(relative, settled) != settled:
                raise UsageError(
                    f"pins say of {relative} in some calls of a block what they do not say of the others (at "
                    f"{segment.absolute(relative)}); blocks that are equal are laid out alike: pin all of them, with * "
                    "for their number."
                )
    return tuple({fqn: s for fqn, s in blocks.get(b, {}).items() if s} for b in range(len(graph.blocks)))


def pinned_atoms(flow: DimFlow, pins: BlockPins, eligible: Iterable[int]) -> tuple[frozenset[int], frozenset[int]]:
    """Atoms of a block that must be sharded over ``tp``, and atoms that may not be.

    Args:
        eligible: atoms that can be sharded at all.

    Raises:
        UsageError: a dim that cannot be sharded; pins that exclude each other, named.
    """
    params, possible = dict(flow.block.params), set(eligible)
    forced: dict[int, str] = {}
    forbidden: dict[int, str] = {}
    for fqn, settled in pins.items():
        place = settled["tp"]
        dims = [flow.atoms.leaves(run) for run in flow.of(params[fqn])]
        text = f"{fqn} tp:{place}"
        if place.kind == "R":
            forbidden.update((atom, text) for leaves in dims for atom in leaves)
            continue
        atom = _atom_at(flow, dims, place)
        if atom is None or atom not in possible:
            raise UsageError(
                f"pin {text} cannot be obeyed: {_why(flow, dims, place, atom)}. Parameters can be sharded over tp "
                f"along: {_offers(flow, possible) or 'none'}."
            )
        forced[atom] = text
    clash = forced.keys() & forbidden.keys()
    if clash:
        pairs = "; ".join(f"{forced[a]} and {forbidden[a]} (both hold the same {flow.atoms.size(a)})" for a in clash)
        raise UsageError(f"pins exclude each other: {pairs}. Drop one of them.")
    for value in range(len(flow.block.values)):
        held = [a for run in flow.of(value) for a in flow.atoms.leaves(run) if a in forced]
        if len(set(held)) > 1:
            names = " and ".join(sorted({forced[a] for a in held}))
            raise UsageError(f"pins exclude each other: {names}: one tensor would be sharded twice. Drop one of them.")
    return frozenset(forced), frozenset(forbidden)


def _atom_at(flow: DimFlow, dims: Sequence[Sequence[int]], place: Placement) -> int | None:
    if place.dim >= len(dims):
        return None
    chunks = 1
    for atom in dims[place.dim]:
        if chunks == place.chunks:
            return atom
        chunks *= flow.atoms.size(atom)
    return None


def _why(flow: DimFlow, dims: Sequence[Sequence[int]], place: Placement, atom: int | None) -> str:
    if place.dim >= len(dims):
        return f"it has {len(dims)} dims"
    if atom is None:
        return f"nothing begins at part {place.chunks} of dim {place.dim}"
    fixing = sorted({flow.block.ops[i].name for i in flow.atoms.fixed_by(atom)})
    return f"{', '.join(fixing)} needs that dim whole" if fixing else "that dim crosses the border of the block"


def _offers(flow: DimFlow, possible: set[int]) -> str:
    found = []
    for fqn, value in flow.block.params:
        for d, run in enumerate(flow.of(value)):
            chunks = 1
            for atom in flow.atoms.leaves(run):
                if atom in possible:
                    found.append(f"{fqn} tp:{Placement('S', d, chunks)}")
                chunks *= flow.atoms.size(atom)
    return ", ".join(found)


def _nearest(pattern: str, names: Iterable[str]) -> str:
    folded = dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names)
    near = difflib.get_close_matches(pattern, list(folded), n=3, cutoff=0.3)
    return f" Near: {', '.join(near)}." if near else ""
