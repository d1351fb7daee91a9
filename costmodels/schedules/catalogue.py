"""Every schedule by name, with the combinations it exists for."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from costmodels.schedules import both_ways, by_readiness, many_chunks, one_chunk, split_backward
from costmodels.schedules.errors import ScheduleError
from costmodels.schedules.schedule import Schedule
from hardware_profiles.errors import UnknownNameError


class Rule(NamedTuple):
    """What ranks, microbatches and chunks must satisfy."""

    holds: Callable[[int, int, int], bool]
    says: str
    """The rule and what to do, after the schedule's name."""


class _Entry(NamedTuple):
    make: Callable[[int, int, int], Schedule]
    rules: tuple[Rule, ...]
    period: Callable[[int, int, int], int] | None = None


_POSITIVE = Rule(lambda p, m, v: min(p, m, v) > 0, "has ranks, microbatches and chunks: take at least 1 of each")
_ONE = Rule(lambda p, m, v: v == 1, "runs one chunk per rank: ask for 1")
_SEVERAL = Rule(lambda p, m, v: v > 1, "runs several chunks per rank: ask for 2 or more")
_TWO = Rule(lambda p, m, v: v == 2, "runs two chunks per rank: ask for 2")
_EVEN = Rule(
    lambda p, m, v: v > 0 and v % 2 == 0, "runs an even number of chunks, down the ranks and up: ask for 2, 4, ..."
)
_ROUNDS = Rule(
    lambda p, m, v: v == 1 or m % max(1, m // p) == 0,
    "runs in m // p equal rounds: take as many microbatches as a multiple of the ranks",
)
_BOTH_ENDS = Rule(
    lambda p, m, v: p % 2 == 0 and m % 2 == 0,
    "runs half of the microbatches from either end: take an even number of ranks and of microbatches",
)
_FULL = Rule(lambda p, m, v: m >= 2 * p, "needs two microbatches per rank to fill: take at least 2 * ranks")

_CATALOGUE = {
    "gpipe": _Entry(lambda p, m, v: one_chunk.gpipe(p, m), (_ONE,)),
    "1f1b": _Entry(lambda p, m, v: one_chunk.one_f_one_b(p, m), (_ONE,), lambda p, m, v: 1),
    "interleaved-1f1b": _Entry(
        many_chunks.interleaved, (_SEVERAL, _ROUNDS), lambda p, m, v: many_chunks.round_size(p, m)
    ),
    "looped-bfs": _Entry(many_chunks.looped_bfs, ()),
    "zb-h1": _Entry(split_backward.zb_h1, (_ROUNDS,), lambda p, m, v: many_chunks.round_size(p, m) if v > 1 else 1),
    "zb-h2": _Entry(lambda p, m, v: split_backward.zb_h2(p, m), (_ONE,), lambda p, m, v: 1),
    "zb-v": _Entry(lambda p, m, v: both_ways.zb_v(p, m), (_TWO,), lambda p, m, v: 1),
    "2bp": _Entry(lambda p, m, v: split_backward.two_stage_backward(p, m), (_ONE,)),
    "zeropp": _Entry(split_backward.blockwise, ()),
    "dualpipe": _Entry(lambda p, m, v: both_ways.dualpipe(p, m), (_ONE, _BOTH_ENDS, _FULL), lambda p, m, v: 2),
    "dualpipe-v": _Entry(lambda p, m, v: both_ways.dualpipe_v(p, m), (_TWO, _FULL), lambda p, m, v: 1),
    "wave": _Entry(by_readiness.wave, (_EVEN,)),
    "bitpipe": _Entry(by_readiness.bitpipe, (_EVEN, _BOTH_ENDS)),
}

NAMES = tuple(_CATALOGUE)
"""Names of all schedules."""


@lru_cache(maxsize=256)
def make(name: str, num_ranks: int, num_microbatches: int, num_chunks: int = 1) -> Schedule:
    """The named schedule; made once, so that its dependencies are found once.

    Raises:
        UnknownNameError: no schedule of that name.
        ScheduleError: the schedule does not exist for these numbers.
    """
    check(name, num_ranks, num_microbatches, num_chunks)
    return _CATALOGUE[name].make(num_ranks, num_microbatches, num_chunks)


def check(name: str, num_ranks: int, num_microbatches: int, num_chunks: int = 1) -> None:
    """Whether the named schedule exists for these numbers.

    Raises:
        UnknownNameError, ScheduleError: as `make`.
    """
    if name not in _CATALOGUE:
        raise UnknownNameError("schedule", name, NAMES)
    for rule in (_POSITIVE, *_CATALOGUE[name].rules):
        if not rule.holds(num_ranks, num_microbatches, num_chunks):
            raise ScheduleError(
                f"no schedule {name} of {num_ranks} ranks, {num_microbatches} microbatches and {num_chunks} chunks per "
                f"rank: {name} {rule.says}."
            )


def period(name: str, num_ranks: int, num_microbatches: int, num_chunks: int = 1) -> int | None:
    """Microbatches after which the orders of a known schedule repeat, shifted by as many, between a begin and an end
    that do not depend on how many there are; None where they never do."""
    of = _CATALOGUE[name].period
    return of(num_ranks, num_microbatches, num_chunks) if of else None
