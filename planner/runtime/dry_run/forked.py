"""Run functions in forked children, a few at a time.

A rank of a job that nobody else runs belongs in a process of its own: DTensor's caches keep names of process groups.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from planner.errors import MeshwrightError

T = TypeVar("T")


class ChildError(RuntimeError):
    """A child process failed; the message is its traceback."""


def in_children(tasks: Sequence[Callable[[], T]], *, at_once: int = 2) -> list[T]:
    """Results of all tasks, in their order; each runs in a child forked from this process.

    Raises:
        ChildError: of the first task that failed or whose process ended without a result.
        MeshwrightError: what a task raised.
    """
    results: dict[int, T] = {}
    running: dict[Connection[Any, Any], tuple[int, BaseProcess]] = {}
    waiting = list(enumerate(tasks))[::-1]
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                index, task = waiting.pop()
                receive, process = _start(task)
                running[receive] = index, process
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                index, process = running.pop(ready)
                results[index] = _result(ready, process)
    finally:
        for _, process in running.values():
            process.terminate()
    return [results[i] for i in range(len(tasks))]


def _start(task: Callable[[], object]) -> tuple[Connection[Any, Any], BaseProcess]:
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(task, send), daemon=True)
    process.start()
    send.close()
    return receive, process


def _result(receive: Connection[Any, Any], process: BaseProcess) -> Any:
    try:
        failure, value = receive.recv()
    except EOFError:
        process.join()
        raise ChildError(f"the process ended with exit code {process.exitcode}") from None
    process.join()
    if failure is not None:
        raise failure
    return value


def _run(task: Callable[[], object], send: Connection[Any, Any]) -> None:
    torch.set_num_threads(1)
    try:
        send.send((None, task()))
    except MeshwrightError as cause:
        send.send((cause, None))
    except Exception:  # noqa: BLE001  # whatever it is, the parent is to know; tracebacks do not travel, their text does
        send.send((ChildError(traceback.format_exc()), None))
