"""Reading an operation's arguments."""

from __future__ import annotations

from planner.graph import Arg, Op, Ref


def base_name(op: Op) -> str:
    """Name of an operation, also of one that writes into its first argument: ``add`` for ``add_``."""
    return op.name[:-1] if op.name.endswith("_") and not op.name.endswith("__") else op.name


def tensors(op: Op) -> list[int]:
    """Tensor arguments in their order; one that is given twice counts twice."""
    return [arg.value for arg in op.args if isinstance(arg, Ref)]


def dim_at(op: Op, position: int, rank: int, default: int = 0) -> int:
    """The dim that the argument at ``position`` names, counted from the front."""
    arg = op.args[position] if len(op.args) > position else default
    return arg % rank if isinstance(arg, int) and rank else 0


def dims_at(op: Op, position: int, rank: int) -> set[int]:
    """The dims that the argument at ``position`` lists; all of them where it lists none."""
    arg = op.args[position] if len(op.args) > position else None
    if isinstance(arg, tuple) and not isinstance(arg, Ref):
        return {a % rank for a in arg if isinstance(a, int)} or set(range(rank))
    return {arg % rank} if type(arg) is int and rank else set(range(rank))


def ints_at(op: Op, position: int) -> tuple[int, ...]:
    """The run of ints at ``position``; empty where there is none."""
    arg: Arg = op.args[position] if len(op.args) > position else None
    if isinstance(arg, tuple) and not isinstance(arg, Ref):
        return tuple(a for a in arg if isinstance(a, int))
    return (arg,) if isinstance(arg, int) else ()
