"""Where commands print: data to stdout, talk to stderr."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def emit(text: str) -> None:
    """Write data to stdout; a reader that has left (``| head``) is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has all it wants. Into devnull goes what the interpreter still flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Write a line of talk to stderr."""
    sys.stderr.write(f"meshwright: {text}\n")


def width() -> int:
    """Columns of the terminal, or of ``COLUMNS``; the reports' own where there is neither.

    At least 80: below, tables can wrap no further and would be cut.
    """
    from planner.report.columns import WIDTH

    return max(80, shutil.get_terminal_size((WIDTH, 24)).columns)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A spinner on stderr, where that is a terminal, and the function that names what is under way."""
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        yield lambda doing: status.update(Text(doing))
