"""Hardware profiles as text: the list of them, one of them with where its figures come from, and what a check found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hardware_profiles.figures import Figure
from hardware_profiles.load import group_profile, group_section, load_cluster, load_profile
from hardware_profiles.schema import GroupSection, MixedProfile, Profile
from planner.report.columns import columns, text
from planner.report.profile_values import (
    Plain,
    evidence,
    evidence_words,
    figures,
    label,
    memory_words,
    peak_words,
    shown,
    values,
)

_HIDDEN = ("name", "base")
"""Said in the headline."""


def profile_of(source: str, group: str | None) -> Profile | MixedProfile:
    """Profile of a name or file, or of the machines of one ``group`` of a mixed cluster.

    Raises `UnknownNameError` or `ProfileError`.
    """
    profile = load_profile(source)
    return profile if group is None else group_profile(group_section(profile, group))


def render_list(profiles: Mapping[str, Profile | MixedProfile], *, width: int | None) -> str:
    """A line per profile: name, memory and best peak of a device, its node and network; of mixed clusters the groups.

    ``width`` None is for pipes: no headline, one line per profile however long.
    """
    table = columns("name", ">memory", ">peak", "node", "~network", header=width is not None)
    for name, profile in profiles.items():
        levels = ", ".join(level.name for level in profile.network)
        if isinstance(profile, MixedProfile):
            groups = " + ".join(
                f"{group.name}: {group.num_nodes} nodes of {group.hardware}" for group in profile.groups
            )
            table.add_row(name, "", "", "mixed", f"{groups}, over {levels}")
        else:
            table.add_row(name, memory_words(profile), peak_words(profile), _node_words(profile), levels or "none")
    return text([table], width=width, wrap=True)


def list_json(profiles: Mapping[str, Profile | MixedProfile]) -> list[dict[str, Any]]:
    """What `render_list` shows, in SI units."""
    return [_entry(name, profile) for name, profile in profiles.items()]


def render_profile(profile: Profile | MixedProfile, *, width: int, color: bool = False) -> str:
    """Every value of a profile, section by section as in its file, with evidence and the number of its source below.

    Of a mixed cluster: its groups, their cards where they have others than their profile, and the levels above them.
    """
    sources: dict[str, int] = {}
    sections: list[RenderableType] = [_headline(profile)]
    if isinstance(profile, MixedProfile):
        sections.append(_groups(profile.groups))
    sections.append(_values(profile, sources))
    if sources:
        sections.append(_sources(sources))
    return text(sections, width=width, color=color, wrap=True)


def profile_json(profile: Profile | MixedProfile) -> dict[str, Any]:
    """A profile with the keys and units of its file; of a mixed cluster the profiles of its groups as well."""
    content: dict[str, Any] = {"profile": profile.model_dump(mode="json", exclude_none=True)}
    if isinstance(profile, MixedProfile):
        machines = {group.name: group_profile(group) for group in profile.groups}
        content["machines"] = {name: part.model_dump(mode="json", exclude_none=True) for name, part in machines.items()}
    else:
        content["evidence"] = profile.evidence
    return content


def check_file(path: Path) -> str:
    """Read a profile file and build clusters of it; a line that sums it up, or `ProfileError` with a line per fault."""
    # A bare name would be taken for that of a packaged profile.
    source = str(path) if path.suffix == ".toml" or "/" in str(path) else f"./{path}"
    profile = load_profile(source)
    counted = evidence_words(figures(profile))
    if isinstance(profile, MixedProfile):
        machines = [group_profile(group) for group in profile.groups]
        if len({part.node.num_devices for part in machines}) == 1:
            load_cluster(source)
        groups = ", ".join(f"{group.name} ({group.num_nodes} x {group.hardware})" for group in profile.groups)
        return f"{path}: valid: mixed cluster {profile.name}, {groups}; {counted}\n"
    per_node = profile.node.num_devices
    nodes = (
        (profile.network[-1].num_nodes or 2 * (profile.network[-2].num_nodes or 1)) if len(profile.network) > 1 else 2
    )
    load_cluster(f"{source}:{nodes if profile.network else 1}x{per_node}")
    network = ", ".join(level.name for level in profile.network) or "no network"
    node = f"{per_node} devices of {memory_words(profile)} per node ({profile.node.fabric})"
    kind = f"{profile.name}, {node}, {network}"
    return f"{path}: valid: {kind}; {counted}\n"


def _entry(name: str, profile: Profile | MixedProfile) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "network": [level.name for level in profile.network]}
    if isinstance(profile, MixedProfile):
        entry["groups"] = [
            {"name": group.name, "hardware": group.hardware, "num_nodes": group.num_nodes} for group in profile.groups
        ]
        return entry
    device = profile.device.build(profile.name)
    return entry | {
        "evidence": profile.evidence,
        "memory_bytes": device.memory_bytes,
        "peak_flop_per_s": dict(device.peak_flop_per_s),
        "devices_per_node": profile.node.num_devices,
        "fabric": profile.node.fabric,
    }


def _node_words(profile: Profile) -> str:
    return f"{profile.node.num_devices}, {profile.node.fabric}" if profile.node.num_devices > 1 else "1"


def _headline(profile: Profile | MixedProfile) -> RenderableType:
    if isinstance(profile, MixedProfile):
        return Text.assemble((profile.name, "bold"), f": mixed cluster of {len(profile.groups)} groups")
    base = f", what it does not give from {profile.base}" if profile.base else ""
    return Text.assemble((profile.name, "bold"), f": {evidence_words(figures(profile))}{base}")


def _groups(groups: Sequence[GroupSection]) -> Table:
    table = columns("group", "hardware", ">nodes", "node", ">memory", ">peak", "cards of a node")
    for group in groups:
        machine = group_profile(group)
        cards = f"{machine.nic.count} x {machine.nic.gb_per_s.value:g} GB/s" if machine.nic else "none"
        facts = (str(group.num_nodes), _node_words(machine), memory_words(machine), peak_words(machine))
        table.add_row(group.name, group.hardware, *facts, cards)
    return table


def _values(profile: Profile | MixedProfile, sources: dict[str, int]) -> Table:
    """All values but those of ``_HIDDEN``; numbers new sources in ``sources``."""
    table = columns("figure", "~value", "evidence", ">source")
    section, found = "", values(profile)
    for paths, value in _merged_links(found):
        parent = paths[0].rpartition(".")[0]
        if parent.startswith("node.links"):
            parent = "node.links[]"
        if paths[0] in _HIDDEN or (parent.startswith("groups") and parent.count(".") == 0):
            continue
        if parent != section:
            section = parent
            table.add_row(Text(_title(profile, section), style="bold"))
        words = shown(paths[0], value)
        if parent == "node.links[]":
            words = f"{words}: {', '.join(_ends(found, path) for path in paths)}"
        number = ""
        if isinstance(value, Figure) and value.source:
            number = str(sources.setdefault(value.source, len(sources) + 1))
        stated = evidence(value) if isinstance(value, Figure) else ""
        table.add_row(f"  {label(paths[0])}", words, stated, number)
    return table


def _title(profile: Profile | MixedProfile, section: str) -> str:
    """A section as its file begins it: ``[device]``, or ``[[network]]`` for one of several; of groups their name."""
    name, bracket, rest = section.partition("[")
    if name == "groups" and isinstance(profile, MixedProfile):
        number, _, inner = rest.partition("].")
        return f"[groups.{inner}] of {profile.groups[int(number)].name}"
    return f"[[{name}]]" if bracket else f"[{name}]"


def _merged_links(found: Mapping[str, Figure[Any] | Plain]) -> Iterable[tuple[list[str], Figure[Any] | Plain]]:
    """Values with their paths; figures that links of a node share stand once, with the paths of all of them."""
    links: dict[tuple[str, Any], list[str]] = {}
    merged: list[tuple[list[str], Figure[Any] | Plain]] = []
    for path, value in found.items():
        if not path.startswith("node.links["):
            merged.append(([path], value))
        elif isinstance(value, Figure):
            key = (path.rpartition(".")[2], value)
            if key not in links:
                links[key] = []
                merged.append((links[key], value))
            links[key].append(path)
    return merged


def _ends(found: Mapping[str, Figure[Any] | Plain], path: str) -> str:
    """The two ends of the link that a path belongs to: ``0-1``."""
    return shown("between", [found[path.rpartition(".")[0] + ".between"]])


def _sources(sources: Mapping[str, int]) -> Table:
    table = columns(">source", "")
    for source, number in sources.items():
        table.add_row(str(number), source)
    return table
