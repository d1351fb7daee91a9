"""One block's operations as a table: how each lies over ``tp``, what is communicated before it, what both cost."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from costmodels import units
from planner.plan import BlockLayout, Plan, Redistribution
from planner.report.columns import columns, text


def render(plan: Plan, *, color: bool = False) -> str:
    """The block of the plan that is called most often, operation by operation, for one microbatch.

    An operation is one line, as long as it needs to be.
    """
    if not plan.operations:
        return ""
    block = max(plan.operations, key=lambda found: found.calls)
    return text([_headline(plan, block), operations_table(block)], width=None, color=color)


def _headline(plan: Plan, block: BlockLayout) -> RenderableType:
    candidate, others = plan.candidate, [b for b in plan.operations if b is not block]
    forward, backward = total_s(block)
    counted = "; ".join(f"{block_name(b)}: {units.format_seconds(sum(total_s(b)))}" for b in others)
    return Text.assemble(
        (block_name(block), "bold"),
        f" ({block.calls} calls), one microbatch of {candidate.microbatch_size} over tp {candidate.tp}: forward "
        f"{units.format_seconds(forward)}, backward {units.format_seconds(backward)}"
        + (f"; also {counted}" if counted else "")
        + "\nS(d) sharded, R whole, B whole with a partial gradient, P partial sum; nothing is hidden behind anything",
    )


def block_name(block: BlockLayout) -> str:
    """Its modules; bare operations between blocks have none."""
    return ", ".join(block.modules) or "between modules"


def total_s(block: BlockLayout) -> tuple[float, float]:
    """Seconds forward and backward of one call, communication included."""
    forward = sum(op.forward_s + sum(r.forward_s for r in op.redistributions) for op in block.operations)
    backward = sum(op.backward_s + sum(r.backward_s for r in op.redistributions) for op in block.operations)
    return forward, backward


def operations_table(block: BlockLayout) -> RenderableType:
    """One line per operation: how it lies, what it costs, what is communicated before it."""
    table = columns("module", "operation", "inputs", "outputs", ">forward", ">backward", "communicated before")
    for op in block.operations:
        table.add_row(
            op.module or ".",
            op.operation if op.implementation == "local" else f"{op.operation} ({op.implementation})",
            " ".join(op.inputs),
            " ".join(op.outputs),
            units.format_seconds(op.forward_s) if op.forward_s else "",
            units.format_seconds(op.backward_s) if op.backward_s else "",
            "; ".join(_moved(moved) for moved in op.redistributions),
        )
    return table


def _moved(moved: Redistribution) -> str:
    """``S(1)->B all_gather 223 us, reduce_scatter 223 us``."""
    passes = ((moved.forward, moved.forward_s), (moved.backward, moved.backward_s))
    named = ", ".join(f"{name} {units.format_seconds(s)}" for name, s in passes if s)
    return f"{moved.source}->{moved.target} {named}"
