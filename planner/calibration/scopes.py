"""Which constants multiply which seconds of a run, and how far from 1 each is believed before anything is measured.

A step is the sum of its classes (`planner.solvers.classes.CLASSES`), and the factor on a class is the product of its
constants: one of the class for all runs, and further ones for what a run's device and execution are. The more special a
constant, the closer to 1 it is held: what all runs share goes to the general one, what nobody measured to none.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.execution import Execution

ARCHITECTURES: Mapping[str, str] = {
    "a100-40gb": "a100",
    "a100-80gb": "a100",
    "a100-pcie": "a100",
    "a800-80gb": "a100",
    "dgx-a100": "a100",
    "dgx-h100": "h100",
    "gh200-96gb": "h100",
    "h100-96gb": "h100",
    "h100-pcie": "h100",
    "h100-sxm": "h100",
    "h200-sxm": "h100",
    "h800-sxm": "h100",
    "b200-sxm": "b200",
    "b300-sxm": "b200",
    "gb200-nvl72": "b200",
    "gb300-nvl72": "b200",
    "frontier": "mi250x",
    "mi250x": "mi250x",
    "mi300x": "mi300x",
    "ascend-910a": "ascend",
    "ascend-910b": "ascend",
    "atlas-800t-a2": "ascend",
}
"""Packaged profile -> architecture, called by its first device. Constants are of these profiles' figures; a profile
that is not here (one's own, measured or calibrated) is taken at its word."""

BINS = frozenset({"b200-sxm", "b300-sxm", "gb200-nvl72", "gb300-nvl72", "gh200-96gb", "h100-96gb"})
"""Profiles whose clocks, power or memory differ from others of their architecture: their products have constants of
their own."""

GENERAL_SD, SPECIAL_SD, MOST_SPECIAL_SD = 0.25, 0.10, 0.05
"""Standard deviations of a constant's logarithm before anything is measured, by how special it is: of a class, of a
device or an implementation, of both."""

PACE_SD = 0.1
"""The same of a framework's generation: how well its own kernels and their gaps come up to the device's best."""

HOST_SD = 0.5
"""The same of waiting for the host: processors and software differ more than devices of one name do."""


def constants_of(
    *, device: str, execution: Execution, low_precision: bool, experts: bool
) -> Mapping[str, tuple[str, ...]]:
    """Names of the constants on each class of a run's seconds; none for a device that is not in `ARCHITECTURES`.

    Args:
        device: name of the device's profile.
        low_precision: products of the repeated blocks run below the compute precision.
        experts: the model routes tokens to experts.
    """
    architecture = ARCHITECTURES.get(device)
    if architecture is None:
        return {}
    attention = f"attention/{execution.attention}"
    pace = f"pace/{execution.generation}"
    names: dict[str, tuple[str, ...]] = {
        "gemm": (
            "gemm",
            *(("gemm-fp8",) if low_precision else ()),
            f"gemm/{architecture}",
            *((f"gemm/{device}",) if device in BINS else ()),
            pace,
        ),
        "attention": ("attention", attention, f"{attention}/{architecture}", pace),
        "memory_bound": (
            "memory_bound", f"memory_bound/{'fused' if execution.fused_pointwise else 'eager'}", pace
        ),
        "host": ("host", f"host/{execution.generation}"),
        "tp": ("tp", f"tp/{architecture}"),
        "cp": ("cp",),
        "ep": ("ep", f"ep/{architecture}"),
        "dp": ("dp", f"dp/{'overlapped' if execution.overlap_gradients else 'exposed'}"),
        "optimizer": ("optimizer",),
    }  # fmt: skip
    if experts:
        return {kind: (*of_kind, "moe") for kind, of_kind in names.items()}
    return names


def prior_sd(name: str) -> float:
    """Standard deviation of the logarithm of a constant around 0 before anything is measured, by its name."""
    kind, *special = name.split("/")
    by_kind = {"host": HOST_SD, "pace": PACE_SD}
    return by_kind.get(kind) or (GENERAL_SD, SPECIAL_SD, MOST_SPECIAL_SD)[len(special)]


def meaning(name: str) -> str:
    """What a constant applies to, in words."""
    kind, *special = name.split("/")
    words = {
        "pace": "kernels of a framework's generation",
        "moe": "every class of models with experts",
        "gemm-fp8": "products in fp8 or fp4",
        **_CLASS_WORDS,
    }[kind]
    return words if not special else f"{words}: {', '.join(special)}"


_CLASS_WORDS = {
    "gemm": "products",
    "attention": "attention",
    "memory_bound": "operations that only move memory",
    "host": "waiting for the host",
    "tp": "tensor-parallel collectives",
    "cp": "context-parallel communication",
    "ep": "dispatch to experts",
    "dp": "data-parallel communication",
    "optimizer": "optimizer step",
}
