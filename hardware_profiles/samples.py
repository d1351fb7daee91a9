"""Measurements of a machine, and the file that keeps them while they are made.

Next to the profile ``x.toml`` stands ``x.samples.jsonl``: a first line that says what machine was measured
(`Machine`), then one line per finished measurement (`Sample`), flushed at once. A run that ends early is continued by
starting it again with the same output; lines of another machine are refused, because one profile describes one
machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from hardware_profiles.errors import MeshwrightError
from hardware_profiles.figures import Strict

Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send"]

Kind = Literal[
    Collective,
    "launch",
    "pointwise",
    "norm",
    "optimizer",
    "gemm",
    "grouped_gemm",
    "attention_forward",
    "attention_backward",
    "host_link",
    "overlap_alone",
    "overlap_busy",
]
"""What was timed: a collective (``send``: one way between two ranks), or one kind of kernel.

``overlap_alone`` and ``overlap_busy`` are the same matrix products, without and with collectives running beside
them."""

COLLECTIVES: tuple[Collective, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send")

Count = Annotated[int, Field(ge=1)]


class SamplesError(MeshwrightError):
    """A file of samples that cannot be used: another machine's, another format, or broken."""


class Measurement(Strict):
    """What one measurement times; equal values are the same measurement."""

    kind: Kind
    dtype: str = ""
    """torch dtype name of a kernel's operands; ``tfloat32`` for float32 operands multiplied as TF32."""
    shape: tuple[int, ...] = ()
    """gemm: ``[m, n, k]``; grouped_gemm: ``[groups, m, n, k]``; attention: ``[batch, heads, length, head_dim]``; else
    empty."""
    num_bytes: int = 0
    """Collectives: the message as `costmodels.communication` counts it. Kernels that move memory: read and written."""
    size: Count = 1
    stride: Count = 1
    """Collectives: groups of ``size`` ranks, ``stride`` apart, as `hardware_profiles.topology.group` takes them."""
    ranks: tuple[int, ...] = ()
    """The only group that ran; empty: all groups of the axis ran at once."""

    def __str__(self) -> str:
        parts = [self.kind, self.dtype, "x".join(map(str, self.shape))]
        if self.num_bytes:
            parts.append(f"{self.num_bytes} B")
        if self.kind in COLLECTIVES:
            only = f"ranks {','.join(map(str, self.ranks))} alone" if self.ranks else "all groups"
            parts.append(f"{self.size} ranks, stride {self.stride}, {only}")
        return " ".join(part for part in parts if part)


class Sample(Measurement):
    """A finished measurement: seconds of every repeat, on the rank with the largest median."""

    seconds: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    origin: str = ""
    """Where the sample was taken from, when not measured by this run."""

    @property
    def measurement(self) -> Measurement:
        """What was measured, without the result."""
        return Measurement(**{name: getattr(self, name) for name in Measurement.model_fields})


class Machine(Strict):
    """What was measured: the first line of the file."""

    format: Literal[1] = 1
    devices: tuple[str, ...]
    """Names of the devices, each once."""
    num_nodes: Count
    devices_per_node: Count
    library: Literal["nccl", "rccl", "hccl", "gloo"]
    driver: str
    runtime: str
    """torch and the libraries under it, with their versions."""
    num_compute_units: Count
    memory_bytes: Count
    """Of one device, as a process can allocate it."""
    host_memory_bytes: Count
    """One device's share of its host's memory."""
    hosts: tuple[str, ...]
    date: str
    """Day of the first measurement, ``YYYY-MM-DD``."""

    @property
    def num_devices(self) -> int:
        return self.num_nodes * self.devices_per_node


_SAME = ("devices", "num_nodes", "devices_per_node", "library", "driver", "runtime", "num_compute_units")
"""What must agree for a run to be continued. Hosts may differ: a scheduler gives other nodes of the same cluster."""


def samples_path(output: Path) -> Path:
    """Where the samples of the profile ``output`` are kept."""
    return output.with_name(output.name.removesuffix(".toml") + ".samples.jsonl")


def read_samples(path: Path) -> tuple[Machine, list[Sample]]:
    """Machine and samples of a file; a last line that was cut off by a crash is left out.

    Raises `SamplesError` with the line where the file is not one of samples.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise SamplesError(f"{path}: cannot be read: {error}") from None
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    if not lines:
        raise SamplesError(f"{path}: holds no measurements; remove it")
    try:
        machine = Machine.model_validate_json(lines[0])
    except ValidationError as error:
        raise SamplesError(f"{path}, line 1: does not describe a machine: {_first(error)}") from None
    samples = []
    for i, line in enumerate(lines[1:], start=2):
        try:
            samples.append(Sample.model_validate_json(line))
        except ValidationError as error:
            raise SamplesError(f"{path}, line {i}: not a sample: {_first(error)}") from None
    return machine, samples


class SampleFile:
    """The samples of a run that is under way: those of its earlier attempts, and new ones appended."""

    def __init__(self, path: Path, machine: Machine, samples: Sequence[Sample]) -> None:
        self.path = path
        self.machine = machine
        self.samples = list(samples)

    @classmethod
    def open(cls, path: Path, machine: Machine, *, fresh: bool = False) -> SampleFile:
        """Continue the file at ``path``, or begin it (``fresh``: begin it anew).

        Raises `SamplesError` naming what differs where the file was measured on another machine.
        """
        if fresh or not path.exists() or not path.read_text(encoding="utf-8").count("\n"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(machine.model_dump_json() + "\n", encoding="utf-8")
            return cls(path, machine, ())
        known, samples = read_samples(path)
        differing = [
            f"{name} = {getattr(known, name)!r} there, {getattr(machine, name)!r} here"
            for name in _SAME
            if getattr(known, name) != getattr(machine, name)
        ]
        if differing:
            raise SamplesError(
                f"{path} was measured on another machine: {'; '.join(differing)}. "
                "Give another output, or --fresh to measure anew."
            )
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            path.write_text(text[: text.rindex("\n") + 1], encoding="utf-8")
        return cls(path, known, samples)

    def append(self, sample: Sample) -> None:
        """Keep a sample, on disk at once."""
        self.samples.append(sample)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(sample.model_dump_json(exclude_defaults=True) + "\n")


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'line'}: {fault['msg']}"
