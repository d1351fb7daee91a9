"""Profile files: TOML text -> checked `Profile` -> values of `hardware_profiles.cluster` in SI units.

Every key names its unit; unknown keys, wrong types and numbers outside of what can be meant are errors, and no physical
quantity has a default. Bandwidth and rates are decimal (GB/s, TFLOP/s) and per direction, as datasheets print them. Any
figure may be a bare number or ``{ value = ..., evidence = ..., source = ... }``.

**Memory** is what a process can allocate, i.e. the total that ``torch.cuda.mem_get_info`` and torch's out-of-memory
messages report, not the number on the box: an "80 GB" H100 reports 79.1 GiB, a "141 GB" H200 139.8 GiB. Give exactly
one of ``memory_gib`` (2**30 bytes) and ``memory_gb`` (10**9 bytes).

A profile takes each top-level section that it does not give from the profile named by its ``base``. A mixed cluster
is a file with ``[[groups]]`` of other profiles' machines (`MixedProfile`).
"""

from __future__ import annotations

import tomllib
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from hardware_profiles.cluster import GROUP, NODE
from hardware_profiles.device_section import DeviceSection
from hardware_profiles.errors import ProfileError
from hardware_profiles.figures import Count, Figure, Name, Strict
from hardware_profiles.network_sections import CollectivesSection, NetworkSection, NicSection
from hardware_profiles.node_sections import NodeSection


class _File(Strict):
    name: Name
    network: Annotated[tuple[NetworkSection, ...], Field(strict=False)] = ()

    def _check_levels(self, *, first_needs_uplink: bool) -> None:
        names = [level.name for level in self.network]
        if len(set(names)) < len(names):
            raise ValueError(f"level names must differ, got {', '.join(names)}")
        taken = ({NODE, GROUP} if first_needs_uplink else {NODE}) & set(names)
        if taken:
            raise ValueError(f"no level of the network may be called {taken.pop()!r}")
        inner = 1
        for i, level in enumerate(self.network):
            given = level.oversubscription is not None or level.uplink_gb_per_s is not None
            if (i or first_needs_uplink) and not given:
                raise ValueError(f"network[{i}] ({level.name}): oversubscription or uplink_gb_per_s is missing")
            if not i and not first_needs_uplink and given:
                raise ValueError(
                    f"network[0] ({level.name}): the cards limit the first level; oversubscription and "
                    "uplink_gb_per_s belong to the levels above"
                )
            if level.num_nodes is None:
                if i < len(self.network) - 1:
                    raise ValueError(
                        f"network[{i}] ({level.name}): num_nodes is missing; only the last may leave it out"
                    )
            elif level.num_nodes % inner or level.num_nodes == inner:
                raise ValueError(
                    f"network[{i}] ({level.name}): num_nodes = {level.num_nodes} must be a larger multiple of {inner}"
                )
            inner = level.num_nodes or inner

    def figures(self) -> dict[str, Figure[Any]]:
        """Every figure of the file by its path, e.g. ``device.memory_gb_per_s``, in the order of the file."""
        return _figures(self)


class Profile(_File):
    """A whole file: one kind of machine, and the network that joins a number of them."""

    base: Name | None = None
    device: DeviceSection
    collectives: CollectivesSection
    node: NodeSection
    nic: NicSection | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_levels(first_needs_uplink=False)
        if (self.nic is None) != (not self.network):
            raise ValueError("[nic] and [[network]] go together: give both, or neither for a single machine")
        if self.nic is not None:
            try:
                self.nic.check(self.node.num_devices)
            except ValueError as error:
                raise ValueError(f"nic: {error}") from None
            self._check_uplinks(self.nic)
        memory, copy = self.device.memory_gb_per_s.value, self.collectives.copy_gb_per_s.value
        if copy > memory:
            raise ValueError(f"collectives.copy_gb_per_s = {copy:g}: above device.memory_gb_per_s ({memory:g})")
        return self

    def _check_uplinks(self, nic: NicSection) -> None:
        nodes = 1
        for i, level in enumerate(self.network):
            limit = nic.count * nic.gb_per_s.value * nodes
            if level.uplink_gb_per_s is not None and level.uplink_gb_per_s.value > limit:
                raise ValueError(
                    f"network[{i}] ({level.name}): uplink_gb_per_s = {level.uplink_gb_per_s.value:g}: above the "
                    f"{nodes} x {nic.count} cards of {nic.gb_per_s.value:g} GB/s below it ({limit:g})"
                )
            nodes = level.num_nodes or nodes

    @property
    def evidence(self) -> str:
        """The weakest evidence of all figures; a figure that states none counts as derived."""
        ranks = [_WEAKNESS.index(figure.evidence or "derived") for figure in self.figures().values()]
        return _WEAKNESS[max(ranks)]


_WEAKNESS = ("measured", "datasheet", "derived")


class GroupSection(Strict):
    """``[[groups]]``: a number of machines of another profile."""

    name: Name
    hardware: Annotated[str, Field(min_length=1)]
    num_nodes: Count
    nic: NicSection | None = None


class MixedProfile(_File):
    """A cluster of several kinds of machine; ranks go through the groups in the order of the file."""

    groups: Annotated[list[GroupSection], Field(min_length=2)]
    network: Annotated[tuple[NetworkSection, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise ValueError(f"group names must differ, got {', '.join(names)}")
        self._check_levels(first_needs_uplink=True)
        return self


def parse_profile(text: str, source: str, base: Any = None) -> Profile | MixedProfile:
    """Checked profile from TOML text; ``source`` is what errors call the file.

    ``base`` is the function that gives the sections (`dict`) of the profile named by the file's ``base``. Raises
    `ProfileError` with one line per fault: file, field path, value, rule (for broken TOML: line and column).
    """
    table = read_table(text, source)
    if "base" in table and base is not None and "groups" not in table:
        table = {**base(table["base"]), **table}
    kind = MixedProfile if "groups" in table else Profile
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise ProfileError("\n".join(_line(source, fault) for fault in error.errors())) from None


def read_table(text: str, source: str) -> dict[str, Any]:
    """TOML text as a table; `ProfileError` with line and column where it is not TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{source}: not valid TOML: {error}") from None
    except (ValueError, RecursionError):
        raise ProfileError(f"{source}: not valid TOML: a number or a nesting too long to read") from None


def _figures(section: Any, path: str = "") -> dict[str, Figure[Any]]:
    if isinstance(section, Figure):
        return {path: section}
    if isinstance(section, list | tuple):
        return {key: figure for i, part in enumerate(section) for key, figure in _figures(part, f"{path}[{i}]").items()}
    if isinstance(section, BaseModel):
        return {
            key: figure
            for name in type(section).model_fields
            for key, figure in _figures(getattr(section, name), f"{path}.{name}".lstrip(".")).items()
        }
    return {}


def _line(source: str, fault: Any) -> str:
    """One fault of pydantic as ``file: field.path = value: rule``."""
    parts = list(fault["loc"])
    if parts[:1] == ["node"] and parts[1:2] in (["switch"], ["full-mesh"], ["ring"], ["links"]):
        del parts[1]  # pydantic's name for the kind of fabric
    if parts[-1:] == ["value"] and fault["type"] != "missing":
        parts.pop()
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    rule = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        rule = "unknown key"
    if fault["type"] == "missing":
        return f"{source}: {path}: required key is missing"
    if isinstance(fault["input"], dict | BaseModel | list):
        return f"{source}: {path}: {rule}" if path else f"{source}: {rule}"
    return f"{source}: {path} = {fault['input']!r}: {rule}"
