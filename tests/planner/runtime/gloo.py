"""Real processes with gloo, forked from the one that runs the test: an import of torch each would take longer than most
tests.

Many checks belong in one launch: a launch of 4 takes about 2 seconds.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Exit:
    """How one rank ended."""

    code: int | None
    """Of the process; None where it still ran at the time limit and was killed, negative after a signal."""
    result: Any = None
    failed_at: float | None = None
    error: str = ""
    """The traceback of what the function raised."""
    stderr: str = ""


def run_ranks(num_ranks: int, function: Callable[..., Any], *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """What ``function(*args)`` returns on every rank of a gloo process group.

    Results are pickled, so they must not hold DTensors or modules.

    Raises:
        AssertionError: a rank failed (the traceback of the first that did), died, or ran past the time limit.
    """
    exits = launch(num_ranks, function, *args, timeout_s=timeout_s)
    failed = sorted((end.failed_at, rank) for rank, end in enumerate(exits) if end.failed_at is not None)
    if failed:
        rank = failed[0][1]
        raise AssertionError(f"rank {rank} of {num_ranks}:\n{exits[rank].error}\n{exits[rank].stderr}")
    lost = [(rank, end) for rank, end in enumerate(exits) if end.code != 0]
    if lost:
        rank, end = lost[0]
        how = f"ran past {timeout_s:g} s" if end.code is None else f"ended with {end.code}"
        raise AssertionError(f"rank {rank} of {num_ranks} {how}:\n{end.stderr}")
    return [end.result for end in exits]


def launch(num_ranks: int, function: Callable[..., Any], *args: Any, timeout_s: float = 120.0) -> list[Exit]:
    """How every rank of a gloo process group ended that runs ``function(*args)``."""
    context = get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = [
            context.Process(target=_rank, args=(rank, num_ranks, folder, timeout_s, function, args))
            for rank in range(num_ranks)
        ]
        for process in processes:
            process.start()
        end = time.monotonic() + timeout_s
        while any(p.is_alive() for p in processes) and time.monotonic() < end:
            time.sleep(0.02)
            # What waits for a rank that failed ends with an error of its own that says nothing.
            if any((folder / f"{rank}.error").exists() for rank in range(num_ranks)):
                end = min(end, time.monotonic() + 2.0)
        late = [process.is_alive() for process in processes]
        for process in processes:
            process.kill()
            process.join()
        return [_exit(folder, rank, None if late[rank] else process.exitcode) for rank, process in enumerate(processes)]


def _exit(folder: Path, rank: int, code: int | None) -> Exit:
    stderr = (folder / f"{rank}.stderr").read_text(errors="replace") if (folder / f"{rank}.stderr").exists() else ""
    if (folder / f"{rank}.error").exists():
        failed_at, error = pickle.loads((folder / f"{rank}.error").read_bytes())
        return Exit(code=code, failed_at=failed_at, error=error, stderr=stderr)
    done = folder / f"{rank}.result"
    return Exit(code=code, result=pickle.loads(done.read_bytes()) if done.exists() else None, stderr=stderr)


def _rank(
    rank: int, num_ranks: int, folder: Path, timeout_s: float, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    stderr = (folder / f"{rank}.stderr").open("w")
    os.dup2(stderr.fileno(), 2)
    sys.stderr = stderr
    # pytest turns warnings into errors; those of torch's distributed modules are not the test's.
    warnings.simplefilter("default")
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(num_ranks), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'store'}",
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=timeout_s),
        )
        result = function(*args)
        _write(folder / f"{rank}.result", result)
        dist.barrier()
    except BaseException:  # noqa: BLE001  Whatever it is, the parent is to hear of it.
        _write(folder / f"{rank}.error", (time.monotonic(), traceback.format_exc()))
        stderr.flush()
        os._exit(1)
    stderr.flush()
    # Without the interpreter's end: it would run the exit handlers of the process that was forked.
    os._exit(0)


def _write(path: Path, value: Any) -> None:
    """Whole or not at all, for the parent reads as soon as the file is there."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(value))
    partial.rename(path)
