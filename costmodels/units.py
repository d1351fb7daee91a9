"""The only place where powers of 1024 and of ten stand: every other module multiplies by these names.

Inside, quantities are bytes, seconds and FLOP. Capacity is shown in binary units (GiB), bandwidth and rates in decimal
ones (GB/s, TFLOP/s), as the tools and the datasheets print them (IEC 80000-13; NVIDIA and OLCF datasheets).
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

KILO = 1_000
MEGA = 1_000_000
GIGA = 1_000_000_000
TERA = 1_000_000_000_000
PETA = 1_000_000_000_000_000

MILLI = 1e-3
MICRO = 1e-6
NANO = 1e-9

HOUR = 3_600
"""Seconds of an hour."""

GB = GIGA
"""Bytes of a decimal gigabyte."""

BITS_PER_BYTE = 8

_COUNT_STEPS = ((TERA, "T"), (GIGA, "B"), (MEGA, "M"), (KILO, "k"))
_TIME_STEPS = ((1.0, "s"), (MILLI, "ms"), (MICRO, "us"), (NANO, "ns"))
_BYTE_STEPS = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))


def gib(num_bytes: float) -> float:
    """Bytes -> GiB (2**30 bytes), the unit of capacity."""
    return num_bytes / GIB


def gb_per_s(bytes_per_s: float) -> float:
    """Bytes/s -> GB/s (decimal), the unit of bandwidth."""
    return bytes_per_s / GB


def tflop_per_s(flop_per_s: float) -> float:
    """FLOP/s -> TFLOP/s (decimal), the unit of compute rate."""
    return flop_per_s / TERA


def milliseconds(seconds: float) -> float:
    """Seconds -> ms."""
    return seconds / MILLI


def microseconds(seconds: float) -> float:
    """Seconds -> us."""
    return seconds / MICRO


def gbit_per_s_to_bytes_per_s(gbit_per_s: float) -> float:
    """Gb/s, in which network cards are sold (decimal, bits) -> bytes/s."""
    return gbit_per_s * GIGA / BITS_PER_BYTE


def format_seconds(seconds: float) -> str:
    """Seconds in the unit that leaves 1 to 999 before the point, three digits: ``0.00123`` -> ``1.23 ms``."""
    for step, unit in _TIME_STEPS:
        if abs(seconds) >= step:
            return f"{_digits(seconds / step)} {unit}"
    return "0 s" if seconds == 0 else f"{_digits(seconds / NANO)} ns"


def format_bytes(num_bytes: float) -> str:
    """Bytes in binary units, three significant digits: ``3 * GIB`` -> ``3.00 GiB``."""
    for step, unit in _BYTE_STEPS:
        if abs(num_bytes) >= step:
            return f"{_digits(num_bytes / step)} {unit}"
    return f"{num_bytes:.0f} B"


def format_count(count: float) -> str:
    """Parameters or tokens, three significant digits: ``8_030_261_248`` -> ``8.03 B`` (B = 10**9, T = 10**12)."""
    for step, unit in _COUNT_STEPS:
        if abs(count) >= step:
            return f"{_digits(count / step)} {unit}"
    return f"{count:g}"


def format_bandwidth(bytes_per_s: float) -> str:
    """Bytes/s -> decimal GB/s with three significant digits: ``450e9`` -> ``450 GB/s``."""
    return f"{_digits(gb_per_s(bytes_per_s))} GB/s"


def format_rate(flop_per_s: float) -> str:
    """FLOP/s -> decimal TFLOP/s with three significant digits: ``989e12`` -> ``989 TFLOP/s``."""
    return f"{_digits(tflop_per_s(flop_per_s))} TFLOP/s"


def _digits(value: float) -> str:
    """Three significant digits without exponent; more before the point stay as they are."""
    size = abs(value)
    decimals = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    return f"{value:.{decimals}f}"
