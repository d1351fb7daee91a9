"""A pipeline's own list of actions, as ``torch.distributed.pipelining`` writes compute-only schedules.

One row per rank; ``3F1`` is the forward pass of microbatch 1 on stage 3, ``B`` its whole backward pass, ``I`` and ``W``
the halves of it (gradients of the input and of the weights), ``(3F1;0B0)OVERLAP_F_B`` two at once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

from costmodels.schedules import Action, Pair, Schedule
from costmodels.schedules.actions import Entry, Orders, parts
from costmodels.schedules.errors import DeadlockError

ACTION = r"\d+[FBIW]\d+"
ENTRY = rf"^({ACTION}|\(\d+F\d+;\d+B\d+\)OVERLAP_F_B)$"
"""Pattern of one entry of a row."""

_ACTION = re.compile(r"(\d+)([FBIW])(\d+)")


@lru_cache(maxsize=16)
def orders(rows: tuple[tuple[str, ...], ...]) -> Orders:
    """What every rank runs, of rows whose entries match `ENTRY`."""
    return tuple(tuple(_entry(text) for text in row) for row in rows)


def own_schedule(rows: tuple[tuple[str, ...], ...], num_microbatches: int) -> Schedule:
    """The schedule that complete rows (`breaches`) stand for."""
    order = orders(rows)
    ranks = {action.stage: rank for rank, action in _actions(order)}
    return Schedule("actions", order, (tuple(ranks[s] for s in sorted(ranks)),), num_microbatches)


def breaches(rows: tuple[tuple[str, ...], ...], *, pp: int, num_stages: int, num_microbatches: int) -> Iterator[str]:
    """Why rows are no schedule of so many stages and microbatches: each reason once, none for a schedule."""
    if len(rows) != pp:
        yield f"{len(rows)} rows: must be one for each of the {pp} ranks of pp"
        return
    order = orders(rows)
    ranks: dict[int, set[int]] = {}
    for rank, action in _actions(order):
        ranks.setdefault(action.stage, set()).add(rank)
    for stage, found in sorted(ranks.items()):
        if len(found) > 1:
            yield f"stage {stage} runs on ranks {', '.join(map(str, sorted(found)))}: must be on one"
    if sorted(ranks) != list(range(num_stages)):
        yield f"stages {', '.join(map(str, sorted(ranks)))}: must be 0 to {num_stages - 1}"
        return
    if wrong := _incomplete(order, num_stages, num_microbatches):
        yield wrong
    elif all(len(found) == 1 for found in ranks.values()):
        try:
            own_schedule(rows, num_microbatches).graph  # noqa: B018
        except DeadlockError as error:
            yield str(error)


def _incomplete(order: Orders, num_stages: int, num_microbatches: int) -> str | None:
    runs = Counter(action for _, action in _actions(order))
    for stage in range(num_stages):
        for microbatch in range(num_microbatches):
            forward, whole, of_input, of_weights = (runs.pop(Action(k, stage, microbatch), 0) for k in "FBIW")
            if (forward, whole, of_input, of_weights) not in ((1, 1, 0, 0), (1, 0, 1, 1)):
                return (
                    f"stage {stage}, microbatch {microbatch}: F {forward}, B {whole}, I {of_input}, W {of_weights} "
                    f"times: must be F once, and B once or I and W once each"
                )
    if runs:
        return f"{next(iter(runs))}: microbatches must be 0 to {num_microbatches - 1}"
    return None


def _entry(text: str) -> Entry:
    found = [Action(kind, int(stage), int(microbatch)) for stage, kind, microbatch in _ACTION.findall(text)]
    return Pair(*found) if len(found) > 1 else found[0]


def _actions(order: Orders) -> Iterator[tuple[int, Action]]:
    """(rank, action)."""
    rows: Sequence[Sequence[Entry]] = order
    return ((rank, action) for rank, row in enumerate(rows) for entry in row for action in parts(entry))
