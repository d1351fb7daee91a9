"""What is trained (`Job`) and what the user pins (`Constraints`). A plan never changes a setting that convergence
depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training job, independent of how it is laid out."""

    global_batch: int
    """Samples (sequences, images) per optimizer step over all devices."""
    seq_len: int
    """Tokens per sample; 1 for models without a sequence."""
    precision: str = "bf16"
    """A key of ``costmodels.memory.PRECISIONS``."""
    optimizer: str = "adamw"
    """A key of ``costmodels.memory.OPTIMIZERS``."""


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A layout that the user settles."""

    fqn: str
    """Parameter, or module for its ``weight``; ``*`` stands for one path component: ``layers.*.attention.wo``."""
    layout: str
    """Mesh axis and placement: ``tp:S(1)``, ``tp:R``."""


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Pins and limits on the search; ``None`` leaves the choice to the planner."""

    max_tp: int | None = None
    max_pp: int | None = None
    tp: int | None = None
    pp: int | None = None
    dp_replicate: int | None = None
    dp_shard: int | None = None
    microbatch_size: int | None = None
    recompute: str | None = None
    pins: tuple[Pin, ...] = ()
    memory_fraction: float = 0.92
    """Part of device memory that a plan may use; the rest is the allocator's and the driver's."""
