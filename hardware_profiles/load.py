"""Cluster strings -> `Cluster`: packaged profiles by name, the user's own by path.

h100-sxm:8x8              8 nodes of 8 devices
h100-sxm                  with a number of devices given apart
mine/cluster.toml:4x8     a profile file, the same two ways
"""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path

from hardware_profiles.cluster import Cluster, Level
from hardware_profiles.errors import ProfileError, UnknownNameError
from hardware_profiles.schema import Profile, parse_profile

_SHAPE = re.compile(r"^(\d+)x(\d+)$")
_FORM = "NAME:NODESxDEVICES_PER_NODE, e.g. h100-sxm:8x8"


def names() -> tuple[str, ...]:
    """Names of the packaged profiles, sorted."""
    files = resources.files("hardware_profiles").joinpath("data").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_profile(hardware: str) -> Profile:
    """The checked profile of a packaged name (any case) or of a file (anything with ``.toml`` or a path separator).

    Raises `UnknownNameError` for a name that is not packaged and `ProfileError` for a file that is missing, unreadable
    or breaks the schema.
    """
    if _is_path(hardware):
        try:
            text = Path(hardware).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ProfileError(f"{hardware}: no such profile file; packaged profiles: {', '.join(names())}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"{hardware}: cannot be read: {error}") from None
        return parse_profile(text, hardware)
    name = hardware.lower()
    if name not in names():
        raise UnknownNameError("hardware", hardware, names())
    return parse_profile(
        resources.files("hardware_profiles").joinpath("data", f"{name}.toml").read_text(encoding="utf-8"), name
    )


def load_cluster(hardware: str, num_devices: int | None = None) -> Cluster:
    """The cluster that a string describes: ``NAME`` or ``FILE.toml``, alone or with ``:NODESxPER_NODE``.

    Without a shape ``num_devices`` is required: up to one node it is part of a node, beyond that a multiple of the
    node. With a shape it may be given too and must agree. Levels that would join nothing are dropped, so one node
    has no network. Raises `UnknownNameError`, or `ProfileError` with the rule and its numbers.
    """
    source, shape = _split(hardware)
    profile = load_profile(source)
    nodes, per_node = _shape(hardware, shape, profile, num_devices)
    total = nodes * per_node
    levels: list[Level] = []
    node_seen = False
    for section in profile.levels:
        limit = section.num_devices
        if section is profile.node:
            node_seen, size = True, per_node
        elif not node_seen:
            assert limit is not None
            if limit > per_node:
                continue
            size = limit
        else:
            size = total if limit is None else limit // (profile.node.num_devices or 1) * per_node
            if size >= total and levels[-1].num_devices == total:
                break
            size = min(size, total)
        _check_divides(hardware, section.name, size, levels[-1].num_devices if levels else 1)
        levels.append(section.build(size))
    if levels[-1].num_devices != total:
        raise ProfileError(
            f"{hardware}: {total} devices do not fit: the outermost level {levels[-1].name!r} of profile "
            f"{profile.name} joins {levels[-1].num_devices}"
        )
    return Cluster(
        name=f"{profile.name}:{nodes}x{per_node}",
        device=profile.device.build(profile.name),
        levels=tuple(levels),
        evidence=profile.evidence,
        fingerprint=_fingerprint(profile, nodes, per_node),
    )


def _is_path(source: str) -> bool:
    return source.endswith(".toml") or "/" in source or "\\" in source


def _split(hardware: str) -> tuple[str, str | None]:
    """Source and shape of a cluster string; a colon inside a path (``C:\\x.toml``) is not a shape."""
    source, colon, shape = hardware.rpartition(":")
    if not colon or (_is_path(shape) and not _SHAPE.match(shape)):
        return hardware, None
    return source, shape


def _shape(hardware: str, shape: str | None, profile: Profile, num_devices: int | None) -> tuple[int, int]:
    """(nodes, devices per node) by the rules of `load_cluster`."""
    node_size = profile.node.num_devices
    if shape is None:
        if num_devices is None:
            raise ProfileError(f"{hardware}: how many devices? Give their number, or write {_FORM}")
        if num_devices < 1:
            raise ProfileError(f"{hardware}: number of devices ({num_devices}) must be at least 1")
        if node_size is None or num_devices <= node_size:
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
    if node_size is not None and per_node > node_size:
        raise ProfileError(
            f"{hardware}: devices per node ({per_node}) may not exceed the node of {profile.name} ({node_size})"
        )
    if num_devices is not None and num_devices != nodes * per_node:
        raise ProfileError(
            f"{hardware}: {nodes} x {per_node} is {nodes * per_node} devices, but {num_devices} were asked for"
        )
    return nodes, per_node


def _check_divides(hardware: str, name: str, outer: int, inner: int) -> None:
    if outer % inner:
        raise ProfileError(
            f"{hardware}: level {name!r} with {outer} devices must be a multiple of the level inside it ({inner})"
        )


def _fingerprint(profile: Profile, nodes: int, per_node: int) -> str:
    """SHA-256 over the profile's values (key order, comments and spelling of numbers do not count) and the shape."""
    content = {"profile": profile.model_dump(mode="json"), "nodes": nodes, "devices_per_node": per_node}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
