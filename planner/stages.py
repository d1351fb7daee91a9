"""Which segments of a model a plan's stages hold: plans name modules, prices and runtime count segments."""

from __future__ import annotations

from collections.abc import Sequence

from planner.errors import UsageError
from planner.graph import ModelGraph
from planner.plan import Stage


def stage_cuts(graph: ModelGraph, stages: Sequence[Stage]) -> tuple[int, ...]:
    """First segment of every stage, and the number of segments at the end.

    A stage ends with the last segment, counted from its first, whose modules it names. Bare operations between blocks
    belong to the stage before.

    Raises:
        UsageError: stages that name modules which do not run, or not one after another.
    """
    cuts, position = [0], 0
    for number, stage in enumerate(stages):
        named = set(stage.modules)
        while position < len(graph.segments) and named.issuperset(graph.segments[position].modules):
            position += 1
        ran = {module for segment in graph.segments[cuts[-1] : position] for module in segment.modules}
        if ran != named:
            missing = ", ".join(sorted(named - ran)[:3])
            expected = ", ".join(graph.segments[position].modules) if position < len(graph.segments) else "nothing"
            raise UsageError(
                f"stage {number} of the plan names {missing}, which {graph.name} does not run there: after "
                f"{', '.join(sorted(ran)[-3:]) or 'nothing'} comes {expected}. What to do: list modules in order of "
                "execution, each stage a run of them."
            )
        cuts.append(position)
    if position < len(graph.segments):
        left = ", ".join(module for segment in graph.segments[position:] for module in segment.modules)
        raise UsageError(f"the plan's stages leave out {left} of {graph.name}: every module belongs to a stage.")
    return tuple(cuts)
