"""What all candidates of one search, or of one priced run, share: model, cluster, job and framework."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from costmodels import memory
from costmodels.overlap import Array
from hardware_profiles.cluster import Cluster
from planner.execution import EAGER, Execution
from planner.graph import ModelGraph
from planner.job import Job


@dataclass(frozen=True)
class Setting:
    """What all candidates of one search share."""

    graph: ModelGraph
    cluster: Cluster
    job: Job
    execution: Execution = EAGER

    @property
    def precision(self) -> memory.Precision:
        return memory.PRECISIONS[self.job.precision]

    @property
    def num_states(self) -> int:
        return memory.OPTIMIZERS[self.job.optimizer]

    @cached_property
    def block_of(self) -> list[int]:
        return [segment.block for segment in self.graph.segments]

    @cached_property
    def named(self) -> Array:
        """Per segment: 1 where it has modules of its own; a stretch of bare operations between two blocks has none and
        cannot be a stage by itself."""
        return np.array([float(bool(segment.modules)) for segment in self.graph.segments])

    @cached_property
    def tied(self) -> tuple[tuple[int, int, str], ...]:
        """(segment, next segment, relative FQN in the latter) of every two neighbouring readers of one parameter."""
        previous: dict[str, int] = {}
        pairs = []
        for i, segment in enumerate(self.graph.segments):
            for relative, _ in self.graph.blocks[segment.block].params:
                fqn = self.graph.canonical(segment, relative)
                if fqn in previous:
                    pairs.append((previous[fqn], i, relative))
                previous[fqn] = i
        return tuple(pairs)

    @cached_property
    def trained(self) -> tuple[frozenset[str], ...]:
        """Per block, the relative FQNs of parameters that receive gradients, there or (tied ones) elsewhere."""
        graph = self.graph
        receive = {graph.canonical(s, fqn) for s in graph.segments for fqn, _ in graph.blocks[s.block].param_grads}
        trained: dict[int, frozenset[str]] = {}
        for s in graph.segments:
            params = graph.blocks[s.block].params
            trained[s.block] = frozenset(fqn for fqn, _ in params if graph.canonical(s, fqn) in receive)
        return tuple(trained[block] for block in range(len(graph.blocks)))

    @cached_property
    def repeated(self) -> Array:
        """Per segment: 1 where it is one of the model's repeated blocks."""
        return np.array([float(bool(segment.prefix)) for segment in self.graph.segments])

    def per_segment(self, per_block: Sequence[float]) -> Array:
        """Numbers of distinct blocks, for every segment."""
        return np.asarray(per_block, dtype=np.float64)[self.block_of]
