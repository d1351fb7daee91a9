"""Cluster strings -> `Cluster`: packaged profiles by name, the user's own by path.

h100-sxm:8x8              8 nodes of 8 devices
h100-sxm                  with a number of devices given apart
mine/cluster.toml:4x8     a profile file, the same two ways
two-islands               a mixed cluster, as it is
two-islands@roce          one group of its machines, which takes a shape as well
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

from hardware_profiles.assemble import mixed_cluster, uniform_cluster
from hardware_profiles.cluster import Cluster
from hardware_profiles.errors import ProfileError, UnknownNameError
from hardware_profiles.figures import NAME_PATTERN
from hardware_profiles.schema import GroupSection, MixedProfile, Profile, parse_profile, read_table

_SHAPE = re.compile(r"^([0-9]{1,7})x([0-9]{1,7})$")
_FORM = "NAME:NODESxDEVICES_PER_NODE, e.g. h100-sxm:8x8"


def names() -> tuple[str, ...]:
    """Names of the packaged profiles, sorted."""
    files = resources.files("hardware_profiles").joinpath("data").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_profile(hardware: str) -> Profile | MixedProfile:
    """The checked profile of a packaged name (any case) or of a file (anything with ``.toml`` or a path separator).

    Raises `UnknownNameError` for a name that is not packaged and `ProfileError` for a file that is missing, unreadable
    or breaks the schema.
    """
    text, source = _text(hardware)
    profile = parse_profile(text, source, _base)
    if isinstance(profile, MixedProfile) and _is_path(hardware):
        # What a group calls its file is meant from where the mixed file lies.
        folder = Path(hardware).parent
        groups = [
            group.model_copy(update={"hardware": str(folder / group.hardware)}) if _is_path(group.hardware) else group
            for group in profile.groups
        ]
        return profile.model_copy(update={"groups": groups})
    return profile


def load_cluster(hardware: str, num_devices: int | None = None) -> Cluster:
    """The cluster that a string describes (module docstring), with ``num_devices`` where the string names no shape.

    Without a shape ``num_devices`` is required, but for a mixed cluster: up to one node it is part of a node, beyond
    that a multiple of the node. With a shape it may be given too and must agree. Levels that would join nothing are
    dropped, so one node has no network. Raises `UnknownNameError`, or `ProfileError` with the rule and its numbers.
    """
    source, group, shape = split(hardware)
    profile = load_profile(source)
    if isinstance(profile, MixedProfile) and group is None:
        parts = [group_profile(section) for section in profile.groups]
        return mixed_cluster(hardware, profile, parts, shape, num_devices)
    if group is not None:
        section = group_section(profile, group)
        whole = group_profile(section)
        if shape is None and num_devices is None:
            shape = f"{section.num_nodes}x{whole.node.num_devices}"
        nodes, per_node = _shape(hardware, shape, whole, num_devices)
        if nodes > section.num_nodes:
            raise ProfileError(f"{hardware}: {nodes} nodes do not fit: group {group!r} has {section.num_nodes}")
        return uniform_cluster(hardware, whole, nodes, per_node, name=f"{profile.name}@{group}")
    assert isinstance(profile, Profile)
    nodes, per_node = _shape(hardware, shape, profile, num_devices)
    return uniform_cluster(hardware, profile, nodes, per_node, name=profile.name)


def group_section(profile: Profile | MixedProfile, group: str) -> GroupSection:
    """The group of that name; `ProfileError` where there are none, `UnknownNameError` lists those there are."""
    if not isinstance(profile, MixedProfile):
        raise ProfileError(f"{profile.name}@{group}: {profile.name} is not a mixed cluster and has no group {group!r}")
    section = next((section for section in profile.groups if section.name == group), None)
    if section is None:
        raise UnknownNameError(f"group of {profile.name}", group, (section.name for section in profile.groups))
    return section


def group_profile(section: GroupSection) -> Profile:
    """The profile of a group's machines, its own cards in place of the profile's.

    Raises `ProfileError` for machines that no network can join.
    """
    profile = load_profile(section.hardware)
    if isinstance(profile, MixedProfile):
        raise ProfileError(f"group {section.name!r}: {section.hardware} is itself a mixed cluster")
    if profile.nic is None:
        raise ProfileError(f"group {section.name!r}: {profile.name} has no [nic] and [[network]] to be joined by")
    if section.nic is None:
        return profile
    try:
        section.nic.check(profile.node.num_devices)
    except ValueError as error:
        raise ProfileError(f"group {section.name!r}: nic: {error}") from None
    return profile.model_copy(update={"nic": section.nic})


def _text(hardware: str) -> tuple[str, str]:
    """Text of a profile and what errors call it."""
    if _is_path(hardware):
        try:
            return Path(hardware).read_text(encoding="utf-8"), hardware
        except FileNotFoundError:
            raise ProfileError(f"{hardware}: no such profile file; packaged profiles: {', '.join(names())}") from None
        except (OSError, ValueError) as error:
            raise ProfileError(f"{hardware}: cannot be read: {error}") from None
    name = hardware.lower()
    if name not in names():
        raise UnknownNameError("hardware", hardware, names())
    return resources.files("hardware_profiles").joinpath("data", f"{name}.toml").read_text(encoding="utf-8"), name


def _base(hardware: str) -> dict[str, Any]:
    """Sections of a packaged profile, its own base's included."""
    if not isinstance(hardware, str):
        raise ProfileError(f"base = {hardware!r}: must be the name of a packaged profile")
    if hardware.lower() not in names():
        raise UnknownNameError("base", hardware, names())
    text, source = _text(hardware)
    table = read_table(text, source)
    if "groups" in table:
        raise ProfileError(f"base = {hardware!r}: a mixed cluster cannot be a base")
    return {**_base(table["base"]), **table} if "base" in table else table


def _is_path(source: str) -> bool:
    return source.endswith(".toml") or "/" in source or "\\" in source


def split(hardware: str) -> tuple[str, str | None, str | None]:
    """Source, group and shape of a cluster string; a colon inside a path (``C:\\x.toml``) is not a shape."""
    source, colon, shape = hardware.rpartition(":")
    found: str | None = shape
    if not colon or (_is_path(shape) and not _SHAPE.match(shape)):
        source, found = hardware, None
    head, at, group = source.rpartition("@")
    return (head, group, found) if at and re.match(NAME_PATTERN, group) else (source, None, found)


def _shape(hardware: str, shape: str | None, profile: Profile, num_devices: int | None) -> tuple[int, int]:
    """(nodes, devices per node) by the rules of `load_cluster`."""
    node_size = profile.node.num_devices
    if shape is None:
        if num_devices is None:
            raise ProfileError(f"{hardware}: how many devices? Give their number, or write {_FORM}")
        if num_devices < 1:
            raise ProfileError(f"{hardware}: number of devices ({num_devices}) must be at least 1")
        if num_devices <= node_size:
            return 1, num_devices
        if num_devices % node_size:
            raise ProfileError(
                f"{hardware}: number of devices ({num_devices}) must be at most one node ({node_size}) "
                "or a multiple of it"
            )
        return num_devices // node_size, node_size
    match = _SHAPE.match(shape)
    if match is None:
        raise ProfileError(f"{hardware}: {shape!r} is not a cluster shape; write {_FORM}")
    nodes, per_node = int(match[1]), int(match[2])
    if nodes < 1 or per_node < 1:
        raise ProfileError(f"{hardware}: nodes ({nodes}) and devices per node ({per_node}) must be at least 1")
    if per_node > node_size:
        raise ProfileError(
            f"{hardware}: devices per node ({per_node}) may not exceed the node of {profile.name} ({node_size})"
        )
    if num_devices is not None and num_devices != nodes * per_node:
        raise ProfileError(
            f"{hardware}: {nodes} x {per_node} is {nodes * per_node} devices, but {num_devices} were asked for"
        )
    return nodes, per_node
