"""A rank that dies or hangs in the middle of a step ends the others, which say so.

Collectives wait for whom does not come: gloo for half an hour, NCCL for ten minutes, and then they blame the wrong one.
So a thread of every rank tells the job's store that it lives and how many steps it has begun, and reads the same of the
others; the judgement is that of `hardware_profiles.measuring.watchdog`. What steps have written stays as it is.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from hardware_profiles.measuring.watchdog import EXIT_RANK_LOST, Watchdog
from planner.errors import MeshwrightError

STEP_LIMIT_S = 600.0
"""The first step compiles kernels and reads files."""
SILENCE_LIMIT_S = 60.0
"""A processor that is shared keeps a thread waiting, but not as long."""


class Watch:
    """Of this rank's steps."""

    def __init__(self, watchdog: Watchdog | None) -> None:
        self._watchdog, self._steps = watchdog, 0

    def step(self) -> None:
        """The next step begins: every rank has the time limit to begin it, and to begin the one after it."""
        if self._watchdog is not None:
            self._watchdog.begin(self._steps, f"step {self._steps}")
        self._steps += 1


@contextmanager
def watched(*, time_limit_s: float = STEP_LIMIT_S, silence_limit_s: float = SILENCE_LIMIT_S) -> Iterator[Watch]:
    """Watch the steps inside; every rank must enter. A rank that is lost ends all processes with exit code 5.

    An exception that leaves the block on one rank ends all of them as well, with its exit code.

    Args:
        time_limit_s: for a step.
        silence_limit_s: how long a rank's thread may say nothing before the rank is dead.
    """
    if dist.get_world_size() == 1:
        yield Watch(None)
        return
    watchdog = Watchdog(
        _store(silence_limit_s), dist.get_rank(), dist.get_world_size(), time_limit_s=time_limit_s,
        silence_limit_s=silence_limit_s, save=lambda _: None, work="training",
    )  # fmt: skip
    watchdog.start()
    try:
        yield Watch(watchdog)
        dist.barrier()
    except Exception as error:  # noqa: BLE001  Whatever fails in one rank is to be named, and must not leave the others waiting.
        traceback.print_exc()
        sys.stderr.flush()
        if isinstance(error, MeshwrightError):
            watchdog.fail(str(error), error.exit_code)
        watchdog.fail(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", EXIT_RANK_LOST)
    watchdog.close()


def _store(time_limit_s: float) -> TCPStore:
    """Rank 0's, apart from the job's own, whose connection the main thread may be waiting on."""
    host, limit = os.environ.get("MASTER_ADDR", "localhost"), timedelta(seconds=time_limit_s)
    held = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=limit) if dist.get_rank() == 0 else None
    port = [held.port if held else None]
    dist.broadcast_object_list(port)
    return held or TCPStore(host, port[0] or 0, is_master=False, wait_for_workers=False, timeout=limit)
