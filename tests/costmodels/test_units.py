from __future__ import annotations

import ast
from pathlib import Path

import pytest

from costmodels import units

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("planner", "costmodels", "hardware_profiles")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != ROOT / "costmodels" / "units.py"
]

BINARY = {2**20, 2**30, 2**40, 2**50}
POWERS = {10**9, 10**12, 10**15}
DECIMAL = {1e-9, 1e-6, 1e-3, 1e3, 1e6}


def unit_literals(source: str) -> list[str]:
    """Literals in Python source that convert units: ``1024**3``, ``2**30``, ``1 << 30``, ``x / 1e6``, ``450e9``, ..."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.BinOp(left=ast.Constant(value=1024 | 1000), op=ast.Pow()):
                found.append(node)
            case ast.BinOp(left=ast.Constant(value=2), op=ast.Pow(), right=ast.Constant(value=10 | 20 | 30 | 40)):
                found.append(node)
            case ast.BinOp(left=ast.Constant(value=10), op=ast.Pow(), right=ast.Constant(value=6 | 9 | 12 | 15)):
                found.append(node)
            case ast.BinOp(left=ast.Constant(value=1), op=ast.LShift(), right=ast.Constant(value=10 | 20 | 30 | 40)):
                found.append(node)
            case ast.BinOp(left=left, op=ast.Mult() | ast.Div() | ast.FloorDiv(), right=right):
                found += [side for side in (left, right) if _value(side) in DECIMAL or _value(side) == 1024]
            case ast.Constant() if (value := _value(node)) in BINARY or _is_scale(value):
                found.append(node)
    return [f"line {node.lineno}: {ast.unparse(node)}" for node in found]


def _is_scale(value: float) -> bool:
    """A power of ten from 10**9 up, or a float written like 450e9; a count such as 13_000_000_000 is none."""
    return value in POWERS or (isinstance(value, float) and value >= 1e9 and value % 1e9 == 0)


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value != float("inf"):
        return node.value
    return 0.0


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_conversions_stand_in_units_only(path: Path) -> None:
    assert unit_literals(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "1024**3",
        "2**30",
        "1 << 30",
        "x * 1e9",
        "1_000_000_000",
        "450e9",
        "x / 1e-6",
        "1e6 * x",
        "10**9",
        "x / 1024",
        "1048576",
    ],
)
def test_the_scan_finds_a_conversion(text: str) -> None:
    assert unit_literals(f"y = {text}\n") != []


@pytest.mark.parametrize(
    "text",
    [
        "1e-6",
        "'1024**3 bytes, 1e9'",
        "1024",
        "2**5",
        "x * 4096",
        "13_000_000_000",
        "500_000.0",
        "float('inf')",
        "x + 1e-9",
    ],
)
def test_the_scan_leaves_other_numbers_alone(text: str) -> None:
    assert unit_literals(f"y = {text}  # 1e9 in a comment\n") == []


def test_capacity_is_binary_and_rates_are_decimal() -> None:
    assert units.gib(3 * 2**30) == 3.0
    assert units.gb_per_s(450e9) == 450.0
    assert units.tflop_per_s(989e12) == 989.0
    assert units.gbit_per_s_to_bytes_per_s(400) == 50e9
    assert units.milliseconds(0.25) == pytest.approx(250)
    assert units.microseconds(0.25) == pytest.approx(250_000)
    assert units.TIB == 1024**4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (1.5e-9, "1.50 ns"),
        (3e-10, "0.300 ns"),
        (2.346e-5, "23.5 us"),
        (0.00123, "1.23 ms"),
        (0.1, "100 ms"),
        (1234.0, "1234 s"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (8_030_261_248, "8.03 B"),
        (175e9, "175 B"),
        (1.04e12, "1.04 T"),
        (66_600_000, "66.6 M"),
        (4096, "4.10 k"),
        (12, "12"),
    ],
)
def test_format_count(count: float, text: str) -> None:
    assert units.format_count(count) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1536, "1.50 KiB"), (80 * 2**30, "80.0 GiB"), (3 * 2**40, "3.00 TiB"), (5 * 2**20, "5.00 MiB")],
)
def test_format_bytes(num_bytes: float, text: str) -> None:
    assert units.format_bytes(num_bytes) == text


def test_format_rates() -> None:
    assert units.format_bandwidth(12.5e9) == "12.5 GB/s"
    assert units.format_rate(191.5e12) == "192 TFLOP/s"
