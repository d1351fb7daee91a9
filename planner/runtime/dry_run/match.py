"""Do all ranks of a job communicate alike: members of a group issue the same collectives in the same order, and what
one rank sends the other receives. Where they do not, real ranks would wait for each other for ever, or mix up data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial

from planner.runtime.dry_run.collectives import Call
from planner.runtime.dry_run.forked import in_children

_Signature = tuple[str, tuple[tuple[int, ...], ...], str]


@dataclass(frozen=True)
class Mismatch:
    """Members of one group that do not communicate alike."""

    axis: str
    ranks: tuple[int, ...]
    """The group, or sender and receiver."""
    message: str

    def __str__(self) -> str:
        return f"{self.axis} of ranks {', '.join(map(str, self.ranks))}: {self.message}"


def trace_ranks(
    trace: Callable[[int], Sequence[Call]], world_size: int, *, at_once: int = 2
) -> dict[int, Sequence[Call]]:
    """What every rank of a world issues; ``trace(rank)`` runs in a child process of its own."""
    logs = in_children([partial(trace, rank) for rank in range(world_size)], at_once=at_once)
    return dict(enumerate(logs))


def mismatches(logs: Mapping[int, Sequence[Call]]) -> list[Mismatch]:
    """What does not match between the ranks of a whole world; empty when all is well."""
    groups: dict[tuple[str, tuple[int, ...]], dict[int, list[Call]]] = defaultdict(lambda: defaultdict(list))
    messages: dict[tuple[str, int, int], dict[str, list[Call]]] = defaultdict(lambda: {"send": [], "recv": []})
    for rank, calls in logs.items():
        for call in calls:
            if call.peer is None:
                groups[call.axis, call.group][rank].append(call)
            else:
                ends = (rank, call.peer) if call.kind == "send" else (call.peer, rank)
                messages[call.axis, *ends][call.kind].append(call)
    found = [m for (axis, group), members in groups.items() for m in _group(axis, group, members)]
    for (axis, sender, receiver), sides in messages.items():
        difference = _difference(sides["send"], sides["recv"], f"rank {sender} sends", f"rank {receiver} receives")
        if difference:
            found.append(Mismatch(axis, (sender, receiver), difference))
    return found


def _group(axis: str, group: tuple[int, ...], members: Mapping[int, Sequence[Call]]) -> list[Mismatch]:
    """Members compared with what most of them do."""
    by_sequence: dict[tuple[_Signature, ...], list[int]] = defaultdict(list)
    for rank in group:
        by_sequence[tuple(map(_signature, members.get(rank, ())))].append(rank)
    agreed = max(by_sequence.values(), key=len)
    found = []
    for ranks in by_sequence.values():
        if ranks is not agreed:
            issues = "rank " + ", ".join(map(str, ranks)) + " issues"
            difference = _difference(
                members.get(agreed[0], ()), members.get(ranks[0], ()), f"rank {agreed[0]} issues", issues
            )
            found.append(Mismatch(axis, group, difference))
    return found


def _signature(call: Call) -> _Signature:
    return call.kind if call.peer is None else "message", call.shapes, call.dtype


def _difference(one: Sequence[Call], other: Sequence[Call], one_does: str, other_does: str) -> str:
    """The first difference of two sequences in words; empty where there is none.

    Members of a group run the same modules, so their calls are lined up by those too: one call too many among equal
    ones is then found where it is.
    """
    if [_signature(c) for c in one] == [_signature(c) for c in other]:
        return ""
    keys = [[(_signature(c), c.peer is None and (c.fqn, c.backward)) for c in calls] for calls in (one, other)]
    for operation, a, a_end, b, b_end in SequenceMatcher(a=keys[0], b=keys[1], autojunk=False).get_opcodes():
        if operation != "equal" and [_signature(c) for c in one[a:a_end]] != [_signature(c) for c in other[b:b_end]]:
            return (
                f"{one_does} {_words(one[a:a_end])} as its call {a + 1} of {len(one)}, "
                f"{other_does} {_words(other[b:b_end])} as its call {b + 1} of {len(other)}"
            )
    return f"{one_does} {len(one)} calls, {other_does} {len(other)}, in another order"


def _words(calls: Sequence[Call]) -> str:
    if not calls:
        return "nothing"
    call = calls[0]
    shapes = ", ".join("x".join(map(str, shape)) for shape in call.shapes)
    way = "backward" if call.backward else "forward"
    more = f" and {len(calls) - 1} more" if len(calls) > 1 else ""
    return f"{call.kind} of {shapes} {call.dtype} in {call.fqn or 'the root'} ({way}){more}"
