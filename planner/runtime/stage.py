"""The segments of one pipeline stage as a module: what `fully_shard` wraps and the pipeline calls.

A *unit* is one segment. A repeated block is its own unit: its forward is replaced by the block's local program. What
runs between blocks becomes a `Stretch`, which holds the parameters that its operations read, wherever in the model they
live. The model keeps all of its names (`planner.runtime.placement`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from planner.capture.program import ModelProgram
from planner.runtime.local_program import LocalProgram


class Stretch(nn.Module):
    """Operations between two blocks, and the parameters that they read."""

    def __init__(self, params: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        for fqn, param in params.items():
            self.register_parameter(attribute(fqn), param)


def attribute(fqn: str) -> str:
    """Name under which a stretch holds a parameter."""
    return fqn.replace(".", "__")


@dataclass(frozen=True)
class UnitForward:
    """A unit's forward: slots in, slots out."""

    unit: nn.Module
    model: nn.Module
    """That buffers of a stretch belong to."""
    program: LocalProgram
    constants: Mapping[int, Tensor]

    @cached_property
    def reads(self) -> tuple[int, ...]:
        """Slots, in the order of the arguments."""
        return tuple(dict.fromkeys(s.slot for v, s in self._sources if s.kind == "slot"))

    @cached_property
    def fills(self) -> tuple[int, ...]:
        """Slots, in the order of the results."""
        return tuple(self.program.results)

    @cached_property
    def _sources(self) -> list[Any]:
        return [(v, s) for v, s in self.program.segment.sources.items() if v in self.program.given]

    def __call__(self, *slots: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.reads, slots, strict=True))
        stretch = isinstance(self.unit, Stretch)
        sources: dict[int, Tensor] = {}
        for v, source in self._sources:
            if source.kind == "slot":
                sources[v] = given[source.slot]
            elif source.kind == "constant":
                sources[v] = self.constants[v]
            elif source.kind == "buffer":
                sources[v] = (self.model if stretch else self.unit).get_buffer(source.name)
            else:
                param = getattr(self.unit, attribute(source.name)) if stretch else self.unit.get_parameter(source.name)
                sources[v] = param.to_local() if isinstance(param, DTensor) else param
        del given, slots
        return self.program(sources)


class StageModule(nn.Module):
    """A run of segments on this rank."""

    def __init__(
        self,
        forwards: Sequence[UnitForward],
        program: ModelProgram,
        *,
        first: bool,
        last: bool,
        arriving: Mapping[int, Tensor],
        leaving: Mapping[int, Tensor],
        dtype: torch.dtype,
    ) -> None:
        """
        Args:
            forwards: of its units, in order of execution.
            arriving, leaving: per slot that crosses to this stage and from it, an empty tensor like it (on meta).
            dtype: compute precision, which floating point inputs are cast to.
        """
        super().__init__()
        self.units = nn.ModuleList(forward.unit for forward in forwards)
        self.forwards = tuple(forwards)
        self.program = program
        self.first, self.last = first, last
        self.arriving, self.leaving = dict(arriving), dict(leaving)
        self.dtype = dtype
        reads = [[program.looked_at(slot) for slot in forward.reads] for forward in forwards]
        last_read = {slot: i for i, slots in enumerate(reads) for slot in slots}
        kept = {*self.leaving, program.loss}
        self._freed = [
            [slot for slot, at in last_read.items() if at == i and slot not in kept] for i in range(len(reads))
        ]

    @property
    def blocks(self) -> list[nn.Module]:
        """Units that are repeated blocks: what recomputation applies to."""
        return [forward.unit for forward in self.forwards if forward.program.segment.segment.prefix]

    @property
    def groups(self) -> list[list[nn.Module]]:
        """Units that hold parameters, in order of execution; those that share one are together."""
        groups: list[tuple[set[int], list[nn.Module]]] = []
        for unit in self.units:
            held, together = {id(p) for p in unit.parameters()}, [unit]
            if not held:
                continue
            for other in [group for group in groups if group[0] & held]:
                groups.remove(other)
                held, together = held | other[0], other[1] + together
            groups.append((held, together))
        return [together for _, together in groups]

    def forward(self, *crossing: Tensor, **batch: Tensor) -> Any:
        """One microbatch.

        Args:
            crossing: what the stage before left, in the order of ``arriving``.
            batch: ``b0``, ``b1``, ...: the tensors of the microbatch.
        Returns:
            The loss of the last stage; else what crosses to the next, in the order of ``leaving``.
        """
        held = dict(zip(self.arriving, crossing, strict=True))
        for slot, index in self.program.inputs.items():
            tensor = batch[f"b{index}"]
            held[slot] = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        for unit, run, freed in zip(self.units, self.forwards, self._freed, strict=True):
            results = unit(*(self._slot(held, slot) for slot in run.reads))
            held.update(zip(run.fills, results, strict=True))
            del results
            for slot in freed:
                held.pop(slot, None)
        return held[self.program.loss] if self.last else tuple(held[slot] for slot in self.leaving)

    def _slot(self, held: Mapping[int, Tensor], slot: int) -> Tensor:
        if slot not in self.program.views:
            return held[slot]
        view = self.program.views[slot]
        viewed: Tensor = view.call.target(self._slot(held, view.looked_at), *view.call.args[1:], **view.call.kwargs)
        return viewed
