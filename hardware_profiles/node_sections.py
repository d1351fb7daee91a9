"""``[node]`` of a profile file: one machine, by the kind of its fabric."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from costmodels.units import GB, MICRO
from hardware_profiles.cluster import MAX_VERTICES, Link, Links, Mesh, Node, Switch, Vertex
from hardware_profiles.errors import ProfileError
from hardware_profiles.figures import Count, Fraction, Hop, LinkBandwidth, Name, Strict


class _Node(Strict):
    num_devices: Count
    latency_us: Hop
    collective_fraction: Fraction
    send_fraction: Fraction

    def _build(self, num_devices: int, fabric: Switch | Mesh | Links) -> Node:
        return Node(
            num_devices=num_devices,
            fabric=fabric,
            latency_s=self.latency_us.value * MICRO,
            collective_fraction=self.collective_fraction.value,
            send_fraction=self.send_fraction.value,
        )


class SwitchNode(_Node):
    """``[node] fabric = "switch"``: one link of every device into a switch that blocks nothing."""

    fabric: Literal["switch"]
    gb_per_s: LinkBandwidth
    switch_reduce_fraction: Fraction | None = None
    switch_reduce_across_fraction: Fraction | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.switch_reduce_fraction is None) != (self.switch_reduce_across_fraction is None):
            raise ValueError(
                "switch_reduce_fraction (in the node) and switch_reduce_across_fraction (in groups over several nodes) "
                "go together"
            )
        return self

    def build(self, num_devices: int) -> Node:
        """The first ``num_devices`` of the node."""
        inside, across = self.switch_reduce_fraction, self.switch_reduce_across_fraction
        switch = Switch(
            bytes_per_s=self.gb_per_s.value * GB,
            reduce_fraction=0.0 if inside is None else inside.value,
            reduce_across_fraction=0.0 if across is None else across.value,
        )
        return self._build(num_devices, switch)


class MeshNode(_Node):
    """``[node] fabric = "full-mesh"``: a link for every pair."""

    fabric: Literal["full-mesh"]
    link_gb_per_s: LinkBandwidth

    def build(self, num_devices: int) -> Node:
        """The first ``num_devices`` of the node."""
        return self._build(num_devices, Mesh(bytes_per_s=self.link_gb_per_s.value * GB))


class RingNode(_Node):
    """``[node] fabric = "ring"``: links between neighbours, and between the last device and the first."""

    fabric: Literal["ring"]
    num_devices: Annotated[int, Field(ge=2, le=MAX_VERTICES)]
    link_gb_per_s: LinkBandwidth

    def build(self, num_devices: int) -> Node:
        """The first ``num_devices`` of the ring: an arc, unless they are all."""
        pairs = [(i, i + 1) for i in range(num_devices - 1)]
        if num_devices == self.num_devices > 2:
            pairs.append((num_devices - 1, 0))
        links = (
            Link(
                between=pair,
                bytes_per_s=self.link_gb_per_s.value * GB,
                collective_fraction=self.collective_fraction.value,
                send_fraction=self.send_fraction.value,
            )
            for pair in pairs
        )
        return self._build(num_devices, Links(links=tuple(links)))


class LinkSection(Strict):
    """``[[node.links]]``: devices by number, switches and bridges by name."""

    between: Annotated[list[int | Name], Field(min_length=2, max_length=2)]
    gb_per_s: LinkBandwidth
    collective_fraction: Fraction | None = None


class LinksNode(_Node):
    """``[node] fabric = "links"``: every link is listed."""

    fabric: Literal["links"]
    links: Annotated[list[LinkSection], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        vertices: set[Vertex] = set()
        for i, link in enumerate(self.links):
            a, b = link.between
            if a == b:
                raise ValueError(f"links[{i}].between = {[a, b]}: a link joins two different ends")
            vertices |= {a, b}
            for end in (a, b):
                if isinstance(end, int) and not 0 <= end < self.num_devices:
                    raise ValueError(
                        f"links[{i}].between = {[a, b]}: device {end} does not exist, the node has 0 to "
                        f"{self.num_devices - 1}"
                    )
        missing = [device for device in range(self.num_devices) if device not in vertices]
        if self.num_devices > 1 and missing:
            raise ValueError(f"no link reaches device {', '.join(map(str, missing))}")
        if len(vertices) > MAX_VERTICES:
            raise ValueError(f"links join {len(vertices)} devices and switches; at most {MAX_VERTICES} can be listed")
        self._check_joined(self.num_devices)
        return self

    def _check_joined(self, num_devices: int) -> None:
        reached: set[Vertex] = {0}
        links = self._links(num_devices)
        for _ in links:
            reached |= {end for link in links if reached & set(link.between) for end in link.between}
        beyond = [device for device in range(num_devices) if device not in reached]
        if beyond:
            raise ValueError(f"the links do not join device {', '.join(map(str, beyond))} with device 0")

    def _links(self, num_devices: int) -> tuple[Link, ...]:
        """Links whose devices are among the first ``num_devices``."""
        return tuple(
            Link(
                between=(link.between[0], link.between[1]),
                bytes_per_s=link.gb_per_s.value * GB,
                collective_fraction=(link.collective_fraction or self.collective_fraction).value,
                send_fraction=(link.collective_fraction or self.send_fraction).value,
            )
            for link in self.links
            if all(isinstance(end, str) or end < num_devices for end in link.between)
        )

    def build(self, num_devices: int) -> Node:
        """The first ``num_devices`` of the node; `ProfileError` where their own links do not join them."""
        try:
            self._check_joined(num_devices)
        except ValueError as error:
            raise ProfileError(f"{num_devices} devices of a node of {self.num_devices}: {error}") from None
        return self._build(num_devices, Links(links=self._links(num_devices)))


NodeSection = Annotated[SwitchNode | MeshNode | RingNode | LinksNode, Field(discriminator="fabric")]
