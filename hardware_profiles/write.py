"""Profiles as TOML text: what `hardware_profiles.load` reads back as the same profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomlkit
from tomlkit.items import InlineTable

from hardware_profiles.fit import Fitted
from hardware_profiles.samples import Machine
from hardware_profiles.schema import Profile


def profile_text(fitted: Fitted, machine: Machine, *, command: str = "") -> str:
    """The file of a measured profile; its first lines say what was measured, when, how, and how well it fits."""
    hosts = ", ".join(machine.hosts[:4]) + (", ..." if len(machine.hosts) > 4 else "")
    head = [
        f"{machine.num_devices} x {', '.join(machine.devices)}, {machine.library}.",
        f"{machine.num_nodes} nodes of {machine.devices_per_node}, {len(machine.hosts)} hosts: {hosts}.",
        f"Driver: {machine.driver}. {machine.runtime}.",
        f"Measured {machine.date} with: meshwright hardware measure {command}".rstrip(),
        "",
        "Errors of the figures below against what was measured, |predicted / measured - 1|:",
        *(f"  {error}" for error in fitted.errors),
        *(f"Warning: {warning}" for warning in fitted.warnings),
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in head) + toml_text(fitted.profile)


def toml_text(profile: Profile) -> str:
    """The profile's figures as inline tables ``{ value, evidence, source }``, sections in the order of the schema."""
    document = tomlkit.document()
    for key, value in profile.model_dump(mode="json", exclude_none=True).items():
        if value not in ([], {}):
            document.add(key, _item(value))
    return tomlkit.dumps(document)


def _item(value: Any) -> Any:
    """A section as a table, a figure as an inline table, a list of sections as an array of tables."""
    if isinstance(value, Mapping):
        if "value" in value:
            return _figure(value)
        table = tomlkit.table()
        plain = {key: part for key, part in value.items() if not _is_section(part)}
        sections = {key: part for key, part in value.items() if _is_section(part)}
        for key, part in (plain | sections).items():
            if part not in ([], {}):
                table.add(key, _item(part))
        return table
    if _is_section(value):
        array = tomlkit.aot()
        for part in value:
            array.append(_item(part))
        return array
    return value


def _is_section(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "value" not in value
    return isinstance(value, list | tuple) and bool(value) and all(_is_section(part) for part in value)


def _figure(value: Mapping[str, Any]) -> Any:
    if value.keys() == {"value"}:
        return value["value"]
    figure: InlineTable = tomlkit.inline_table()
    figure.update(value)
    return figure
