"""A model's parameters and buffers on this rank: which of them it needs, and what it forgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from planner.capture.program import ModelProgram
from planner.errors import UsageError
from planner.layouts.model import param_layouts
from planner.layouts.pins import matches
from planner.plan import ParamLayout, Plan
from planner.runtime.initialise import Weights
from planner.runtime.meshes import Meshes
from planner.runtime.parameters import Placer
from planner.runtime.stage import StageModule
from planner.solvers.block_layout.planned import plan_layouts
from planner.stages import stage_cuts


@dataclass(frozen=True)
class Placement:
    """Who holds what of one model."""

    model: nn.Module
    plan: Plan
    program: ModelProgram
    meshes: Meshes
    names: Mapping[str, tuple[str, ...]]
    """FQN -> all names of the parameter, itself first."""
    stale: set[str] = field(default_factory=set)
    """Buffers that only other ranks keep up."""

    @staticmethod
    def of(model: nn.Module, plan: Plan, program: ModelProgram, meshes: Meshes) -> Placement:
        names: dict[int, list[str]] = {}
        for fqn, param in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(param), []).append(fqn)
        return Placement(model, plan, program, meshes, {found[0]: tuple(found) for found in names.values()})

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        return stage_cuts(self.program.graph, self.plan.stages)

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """FQN -> stages that hold it: those that read it, and those of a block that it lies in."""
        canonical = {name: fqn for fqn, names in self.names.items() for name in names}
        found: dict[str, list[int]] = {}
        for stage in range(len(self.plan.stages)):
            for i in range(self.cuts[stage], self.cuts[stage + 1]):
                for name in self._of_segment(i):
                    stages = found.setdefault(canonical[name], [])
                    if stage not in stages:
                        stages.append(stage)
        return found

    def _of_segment(self, i: int) -> Iterator[str]:
        segment = self.program.segments[i]
        if prefix := segment.segment.prefix:
            for name, _ in self.model.get_submodule(prefix).named_parameters(prefix):
                yield name
        else:
            yield from (source.name for source in segment.sources.values() if source.kind == "param")

    @property
    def shared(self) -> dict[str, list[int]]:
        """FQN -> stages, of parameters that several hold."""
        return {fqn: stages for fqn, stages in self.readers.items() if len(stages) > 1}

    def mine(self, stages: list[int]) -> bool:
        return any(self.plan.stage_ranks[stage] == self.meshes.coordinates["pp"] for stage in stages)

    @cached_property
    def rows(self) -> dict[str, tuple[int, ...]]:
        """FQN -> experts that this rank holds, of parameters whose experts the plan places one by one."""
        found = {}
        for fqn, layout in self._layouts().items():
            if layout.placements.get("ep", "R") != "R" and (holders := holders_of(self.plan, fqn)):
                rank = self.meshes.coordinates["ep"]
                found[fqn] = tuple(expert for expert, ranks in enumerate(holders) if rank in ranks)
        return found

    def place(self, weights: Weights) -> None:
        """Give the model this rank's parts of the parameters that its stages hold, and all buffers."""
        placer = Placer(self._layouts(), self.meshes, self.rows)
        # Module by module, so that no more than one module's weights are whole at a time.
        for fqn in self.names:
            if self.mine(self.readers.get(fqn, [])):
                param = self.model.get_parameter(fqn)
                placed = placer.place(fqn, param, placer.part(fqn, weights.parameter(fqn)))
                for name in self.names[fqn]:
                    _owner(self.model, name).register_parameter(name.rpartition(".")[2], placed)
        for fqn, _ in list(self.model.named_buffers(remove_duplicate=False)):
            _owner(self.model, fqn)._buffers[fqn.rpartition(".")[2]] = weights.buffer(fqn)

    def _layouts(self) -> dict[str, ParamLayout]:
        graph = self.program.graph
        said = self.plan.layouts or param_layouts(plan_layouts(graph, self.plan), self.plan.candidate)
        found = {}
        for fqn in self.names:
            layout = next((layout for layout in said if matches(layout.pattern, fqn)), None)
            if layout is None:
                raise UsageError(f"layouts of the plan name no parameter {fqn} of {graph.name}. Plan again.")
            found[fqn] = layout
        return found

    # --- after sharding --------------------------------------------------------------------------------------------

    def held(self, stages: Mapping[int, StageModule]) -> dict[str, dict[int, tuple[nn.Module, str]]]:
        """FQN -> stage -> (module, attribute) that holds its parameter, of stages as they were built."""
        ids = {id(self.model.get_parameter(fqn)): fqn for fqn in self.names}
        found: dict[str, dict[int, tuple[nn.Module, str]]] = {}
        for number, stage in stages.items():
            for module in stage.modules():
                for name, param in module._parameters.items():
                    if param is not None and id(param) in ids:
                        found.setdefault(ids[id(param)], {}).setdefault(number, (module, name))
        return found

    def relink(self, held: Mapping[str, Mapping[int, tuple[nn.Module, str]]]) -> None:
        """Let the model's own modules hold what `fully_shard` made of the parameters, under each name that a stage of
        this rank reads it by, and let go of those of other ranks."""
        keep: dict[str, nn.Parameter] = {}
        for fqn, by_stage in held.items():
            for stage, (module, attr) in by_stage.items():
                param = module.get_parameter(attr)
                own = [name for name in self.names[fqn] if self._stage_of(name) == stage] or [fqn]
                if any(keep.get(name, param) is not param for name in own):
                    raise UsageError(
                        f"{fqn} is read by several stages of one rank, by stage {stage} under no name of its modules: "
                        "tie it as a parameter (head.weight = embed.weight), or let these stages be one."
                    )
                keep.update(dict.fromkeys(own, param))
        for i, segment in enumerate(self.program.segments):
            if (prefix := segment.segment.prefix) and not self.mine([self._stage_of_segment(i)]):
                above, _, name = prefix.rpartition(".")
                del self.model.get_submodule(above)._modules[name]
        once = {module for module in self.model.modules() if any(True for _ in module.parameters())}
        for fqn, names in self.names.items():
            for name in names:
                try:
                    owner, attr = _owner(self.model, name), name.rpartition(".")[2]
                except AttributeError:  # of a block of another stage
                    continue
                if name in keep:
                    owner.register_parameter(attr, keep[name])
                elif fqn in self.readers:
                    del owner._parameters[attr]
                    self.stale.update(name.removesuffix(attr) + buffer for buffer in owner._buffers)
        _prune(self.model, once)

    def _stage_of_segment(self, i: int) -> int:
        return max(stage for stage in range(len(self.plan.stages)) if self.cuts[stage] <= i)

    def _stage_of(self, name: str) -> int:
        """Whose modules a name belongs to."""
        for number, stage in enumerate(self.plan.stages):
            if any(name == module or name.startswith(f"{module}.") for module in stage.modules):
                return number
        return -1


def _owner(model: nn.Module, fqn: str) -> nn.Module:
    return model.get_submodule(fqn.rpartition(".")[0])


def _prune(module: nn.Module, once: Set[nn.Module]) -> None:
    """Drop modules that hold nothing any more and held parameters ``once``."""
    for name, child in list(module._modules.items()):
        if child is not None and child in once:
            if any(True for _ in child.parameters()) or any(True for _ in child.buffers()):
                _prune(child, once)
            else:
                del module._modules[name]


def holders_of(plan: Plan, fqn: str) -> tuple[tuple[int, ...], ...]:
    """Per expert of a block, the ranks of ``ep`` that hold it; empty where each rank has its share in order.

    Args:
        fqn: of the block, or of anything in it.
    """
    path = fqn.split(".")
    prefixes = [".".join(path[:end]) for end in range(1, len(path) + 1)]
    return next((e.ranks for e in plan.experts if any(matches(e.block, prefix) for prefix in prefixes)), ())
