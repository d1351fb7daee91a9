from __future__ import annotations

import re
from pathlib import Path

import pytest

from planner.errors import UsageError
from planner.job import Pin
from planner.pin_file import read_pins


def test_pins_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "pins.toml"
    path.write_text('[[pin]]\nfqn = "a"\nlayout = "tp:R"\n[[pin]]\nfqn = "b.*"\nlayout = "tp:S(1)"\n')
    assert read_pins(path) == (Pin(fqn="a", layout="tp:R"), Pin(fqn="b.*", layout="tp:S(1)"))


@pytest.mark.parametrize(
    ("content", "text"),
    [("[[pin]]\nfqn = 1\n", "pin.0.fqn: Input should be a valid string"), ("[[pin", "cannot be read"),
     ('[[pin]]\nfqn = "a"\nlayout = "tp:R"\nextra = 1', "pin.0.extra: Extra inputs are not permitted"),
     ("", "pin: Field required. Write [[pin]] tables")],
)  # fmt: skip
def test_another_file_is_refused(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "pins.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=re.escape(text)):
        read_pins(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: cannot be read"):
        read_pins(tmp_path / "none.toml")
