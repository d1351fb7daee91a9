"""A packaged profile with its fractions divided by fitted factors: the file that makes them count in every plan.

A factor of 1.2 on a device's products says that they take 1.2 times as long as the profile promises, so that the part
of the peak that they reach is 1.2 times smaller. No fraction is above 1: what a factor asks beyond that is lost, and
said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tomlkit

from hardware_profiles.figures import Evidence, Figure
from hardware_profiles.schema import Profile, parse_profile
from hardware_profiles.write import toml_text

FRACTIONS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("device.efficiency.gemm", "device.efficiency.grouped_gemm"),
    "gemm-fp8": ("device.efficiency.gemm_fp8", "device.efficiency.gemm_fp4"),
    "attention": ("device.efficiency.attention_forward", "device.efficiency.attention_backward"),
    "memory": ("device.efficiency.pointwise", "device.efficiency.norm", "device.efficiency.optimizer"),
    "node": ("node.collective_fraction", "node.switch_reduce_fraction"),
    "network": ("nic.collective_fraction", "nic.contended_fraction", "node.switch_reduce_across_fraction"),
}
"""What a device's own constants stand for -> figures of its profile that they divide, where the profile has them."""

_LEAST = 0.001
"""No fraction of a profile is below."""


@dataclass(frozen=True)
class Refinement:
    """A factor on the seconds of a figure, and where it comes from."""

    factor: float
    evidence: Evidence
    source: str


def refine(base: Profile, by: Mapping[str, Refinement], *, name: str) -> tuple[Profile, tuple[str, ...]]:
    """The profile ``name`` on ``base`` with the `FRACTIONS` of each key of ``by`` divided by its factor, and the paths
    of those that are cut off at 1."""
    content: dict[str, Any] = base.model_dump(mode="json", exclude_none=True) | {"name": name, "base": base.name}
    cut = []
    for key, refinement in by.items():
        for path in FRACTIONS[key]:
            *sections, last = path.split(".")
            table = content
            for section in sections:
                table = table.get(section, {})
            if last not in table:
                continue
            value = table[last]["value"] / refinement.factor
            if value > 1:
                cut.append(path)
            figure = Figure[float](
                value=float(f"{min(1.0, max(_LEAST, value)):.4g}"),
                evidence=refinement.evidence,
                source=refinement.source,
            )
            table[last] = figure.model_dump(mode="json")
    return Profile.model_validate(content), tuple(cut)


def profile_text(refined: Profile, base: Profile, head: tuple[str, ...]) -> str:
    """The file of `refine`: what differs from ``base``, below lines of comment. It is read back before it is given."""
    document = tomlkit.parse(toml_text(refined))
    same = base.model_dump(mode="json", exclude_none=True)
    for key, value in refined.model_dump(mode="json", exclude_none=True).items():
        if key in document and same.get(key) == value:
            document.remove(key)
    text = "".join(f"# {line}\n" for line in head) + tomlkit.dumps(document)
    sections = {key: value for key, value in same.items() if key not in ("name", "base")}
    parse_profile(text, refined.name, lambda _: sections)
    return text
