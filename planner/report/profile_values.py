"""A profile as paths and values, the way its file spells them: ``device.memory_gb_per_s``, ``network[0].name``.

What shows, compares and counts profiles walks these: a key added to the schema is shown without being named here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from costmodels import units
from hardware_profiles.figures import Figure
from hardware_profiles.schema import Profile

Plain = str | int | float | bool | list[Any]

NOT_STATED = "not stated"
"""Evidence of a bare number."""

_UNITS = (
    ("_tflop_per_s", "", "TFLOP/s"),
    ("gb_per_s", "bandwidth", "GB/s"),
    ("_gib", "", "GiB"),
    ("_gb", "", "GB"),
    ("_us", "", "us"),
    ("_usd_per_hour", "", "USD/h"),
    ("_hours", "", "h"),
)
"""End of a key, the word that stands for it in a label, its unit."""


def values(profile: BaseModel) -> dict[str, Figure[Any] | Plain]:
    """Every value that the profile gives by its path, the network last: figures whole, all else plain.

    Lists of plain values are one value; keys that are left out are absent.
    """
    found = sorted(_walk(profile, ""), key=lambda item: item[0].startswith("network["))
    return dict(found)


def figures(profile: BaseModel) -> dict[str, Figure[Any]]:
    """The figures among `values`."""
    return {path: value for path, value in values(profile).items() if isinstance(value, Figure)}


def evidence_words(found: Mapping[str, Figure[Any]]) -> str:
    """How many figures have which evidence: ``42 figures: 3 measured, 39 datasheet``."""
    counts = Counter(evidence(figure) for figure in found.values())
    kinds = ("measured", "datasheet", "derived", NOT_STATED)
    parts = [f"{counts[kind]} {kind}" for kind in kinds if counts[kind]]
    return f"{len(found)} figures: {', '.join(parts)}"


def evidence(figure: Figure[Any]) -> str:
    """A figure's evidence in a word."""
    return figure.evidence or NOT_STATED


def label(path: str) -> str:
    """The last key of a path in words, without its unit: ``device.memory_gb_per_s`` -> ``memory bandwidth``."""
    key = path.rpartition(".")[2]
    for end, word, _ in _UNITS:
        if key.endswith(end):
            key = key.removesuffix(end) + word
            break
    return key.removeprefix("num_").replace("_", " ")


def shown(path: str, value: Figure[Any] | Plain) -> str:
    """A value with the unit that its key names; parts of a whole in percent."""
    if isinstance(value, Figure):
        number = value.value
        if path.startswith("device.efficiency.") or path.endswith("fraction"):
            return f"{number * 100:.4g}%"
        unit = next((unit for end, _, unit in _UNITS if path.endswith(end)), "")
        return f"{number:.6g} {unit}".rstrip()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join("-".join(map(str, item)) if isinstance(item, list) else str(item) for item in value)
    return str(value)


def best_peak(profile: Profile) -> tuple[str, float]:
    """(dtype, FLOP/s) that training would use: bfloat16 where there is one, otherwise the highest peak."""
    peaks = dict(profile.device.build(profile.name).peak_flop_per_s)
    dtype = "bfloat16" if "bfloat16" in peaks else max(peaks, key=lambda name: peaks[name])
    return dtype, peaks[dtype]


def peak_words(profile: Profile) -> str:
    """`best_peak` for the reader: ``989 TFLOP/s bf16``."""
    dtype, rate = best_peak(profile)
    return f"{units.format_rate(rate)} {dtype.replace('bfloat', 'bf').replace('float', 'fp').removesuffix('_e4m3fn')}"


def memory_words(profile: Profile) -> str:
    """The device's memory in GiB."""
    return units.format_bytes(profile.device.build(profile.name).memory_bytes)


def _walk(value: Any, path: str) -> Iterator[tuple[str, Figure[Any] | Plain]]:
    if value is None:
        return
    if isinstance(value, BaseModel) and not isinstance(value, Figure):
        for name in type(value).model_fields:
            yield from _walk(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, list | tuple) and value and isinstance(value[0], BaseModel):
        for i, item in enumerate(value):
            yield from _walk(item, f"{path}[{i}]")
    elif value not in ([], ()):
        yield path, list(value) if isinstance(value, tuple) else value
