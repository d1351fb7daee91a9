"""The slices of work that a rank of a pipeline runs one after the other."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Action(NamedTuple):
    """One microbatch on one virtual stage."""

    kind: str
    """``F`` forward, ``B`` whole backward, ``I`` gradient of the input, ``W`` gradient of the weights."""
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.microbatch} of stage {self.stage}"


class Pair(NamedTuple):
    """A forward and a whole backward that a rank runs at once, each hiding the other's communication; together they
    wait for both inputs, and both outputs leave at the end."""

    forward: Action
    backward: Action

    def __str__(self) -> str:
        return f"{self.forward} with {self.backward}"


Entry: TypeAlias = Action | Pair
Orders: TypeAlias = tuple[tuple[Entry, ...], ...]
"""Per rank what it runs, in order."""
Placement: TypeAlias = tuple[int, ...]
"""Per stage the rank that runs it."""


def parts(entry: Entry) -> tuple[Action, ...]:
    """The one or two actions of an entry of a rank's order."""
    return (entry.forward, entry.backward) if isinstance(entry, Pair) else (entry,)
