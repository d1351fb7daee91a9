"""The mesh that blocks are laid out over: named axes, outer to inner, and the group of ranks of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.cluster import Cluster, Group
from hardware_profiles.topology import group
from planner.layouts.placements import Layout
from planner.solvers.redistribution import Redistributor, Step, Tensor

GATHERS = 2
"""Times that a sharded parameter is gathered: ``fully_shard`` frees it between forward and backward."""


@dataclass(frozen=True)
class LayoutMesh:
    """Axes of devices that neighbour each other in a cluster."""

    cluster: Cluster
    axes: tuple[str, ...]
    """Names, outer to inner: neighbouring ranks differ in the last first."""
    sizes: tuple[int, ...]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Per axis, the ranks that communicate over it."""
        return tuple(
            group(self.cluster, size=size, stride=prod(self.sizes[i + 1 :])) for i, size in enumerate(self.sizes)
        )

    @cached_property
    def _prices(self) -> tuple[Redistributor, Redistributor]:
        """Of activations, and of parameters."""
        return Redistributor(self.groups), Redistributor(self.groups, forward_weight=GATHERS)

    def moving_s(
        self, tensor: Tensor, have: Sequence[Layout], want: Sequence[Layout], *, parameter: bool, stays: bool = False
    ) -> NDArray[np.float64]:
        """Seconds of redistribution, forward and backward together, from each layout to each: ``[have, want]``.

        Args:
            parameter: whether it is gathered `GATHERS` times, as parameters are.
            stays: what would be communicated forward is forbidden (infinite).
        """
        prices = self._prices[parameter]
        from_, at_from = _distinct(have)
        to, at_to = _distinct(want)
        table = prices.table(tensor, from_, to)
        seconds = np.where(table.forward_s > 0, np.inf, table.cost_s) if stays else table.cost_s
        found: NDArray[np.float64] = seconds[np.ix_(at_from, at_to)]
        return found

    def path(
        self, tensor: Tensor, have: Sequence[Layout], want: Sequence[Layout], at: tuple[int, int], *, parameter: bool
    ) -> tuple[Step, ...]:
        """The collectives of one entry of `moving_s`."""
        from_, at_from = _distinct(have)
        to, at_to = _distinct(want)
        return self._prices[parameter].table(tensor, from_, to).path(at_from[at[0]], at_to[at[1]])

    @property
    def num_devices(self) -> int:
        return prod(self.sizes)


def _distinct(layouts: Sequence[Layout]) -> tuple[list[Layout], list[int]]:
    """Layouts without repetition, and the place of each of ``layouts`` among them."""
    places = {layout: i for i, layout in enumerate(dict.fromkeys(layouts))}
    return list(places), [places[layout] for layout in layouts]
