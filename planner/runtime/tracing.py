"""Measured steps as Chrome traces, one file per rank, beside the predicted one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from planner.errors import OutputExistsError, UsageError

PREDICTED = "predicted.json"


def trace_name(rank: int) -> str:
    """File of a rank's measured step."""
    return f"measured-rank{rank}.json"


def check_folder(folder: Path, names: Sequence[str], *, force: bool) -> None:
    """
    Raises:
        OutputExistsError: a file of one of the names is there, and ``force`` is not given.
        UsageError: the folder's name is a file's.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"cannot write into {folder}: it is a file; name a folder.")
    there = [name for name in names if os.path.lexists(folder / name)]
    if there and not force:
        raise OutputExistsError(
            f"{folder} holds {', '.join(there)} already; nothing was written. Give another name or --force"
        )


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write in place of ``path``, which gets that name once it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def profile(folder: Path | None, device: torch.device) -> Iterator[None]:
    """Save what runs inside as this rank's Chrome trace, if there is a folder for it."""
    if folder is None:
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        yield
    with whole(folder / trace_name(dist.get_rank())) as path:
        profiler.export_chrome_trace(str(path))
