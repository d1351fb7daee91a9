"""Errors that a user can mend. The root stands here, in the lowest layer; `planner.errors` draws the whole tree."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MeshwrightError(Exception):
    """Root of all errors caused by input: what happened with its numbers, why, and what to do."""

    exit_code = 4


class UnknownNameError(MeshwrightError):
    """A name that is not known; the message lists the known ones and the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")


class ProfileError(MeshwrightError):
    """A hardware profile or cluster string that is not valid: file, field, value, rule."""
