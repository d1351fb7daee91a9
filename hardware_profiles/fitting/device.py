"""Figures of one device from the timings of its kernels, with the formulas of `costmodels.compute`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from costmodels.compute import MemoryBound, attention_s, gemm_s, memory_bound_s
from costmodels.units import GB, GIB, TERA
from hardware_profiles.cluster import Device, Efficiency
from hardware_profiles.fitting.robust import ClassError, Parameter, Solution, solve, typical
from hardware_profiles.samples import Sample

_MEMORY: tuple[MemoryBound, ...] = ("pointwise", "norm", "optimizer")
_WHOLE = Efficiency(**dict.fromkeys(Efficiency.__dataclass_fields__, 1.0))


@dataclass(frozen=True, kw_only=True)
class DeviceFit:
    """What the device reaches, in SI units; nothing is relative to a datasheet."""

    launch_s: float | None
    memory_bytes_per_s: dict[str, float]
    """By kind of kernel that moves memory."""
    flop_per_s: dict[str, float]
    """Large matrix products by dtype."""
    dtype: str
    """The dtype of the products and attention below: the first that was measured."""
    fused_flop_per_s: dict[str, float]
    """``grouped_gemm``, ``attention_forward``, ``attention_backward``."""
    host_bytes_per_s: float | None
    errors: tuple[ClassError, ...] = field(default=())


def fit_device(samples: Sequence[Sample], *, num_compute_units: int, gemm_tile: tuple[int, int]) -> DeviceFit:
    """The figures that the samples give; those without samples are missing from the result."""
    by_kind: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        by_kind.setdefault((sample.kind, sample.dtype), []).append(sample)
    launches = [typical(sample.seconds) for sample in by_kind.get(("launch", ""), ())]
    launch_s = launches[0] if launches else None
    device = Device(
        name="measured",
        peak_flop_per_s=(),
        memory_bytes=GIB,
        memory_bytes_per_s=GB,
        num_compute_units=num_compute_units,
        gemm_tile=gemm_tile,
        efficiency=_WHOLE,
        launch_overhead_s=launch_s or 0.0,
    )
    errors: list[ClassError] = []
    memory: dict[str, float] = {}
    for kind in _MEMORY:
        found = by_kind.get((kind, "float32"))
        if found:
            memory[kind] = _rate(found, kind, errors, _memory_s(device, kind), GB)
    device = replace(device, memory_bytes_per_s=memory.get("pointwise", TERA))
    dtypes = [dtype for kind, dtype in by_kind if kind == "gemm"]
    rates = {
        dtype: _rate(by_kind["gemm", dtype], f"gemm {dtype}", errors, _gemm_s(device, dtype), TERA) for dtype in dtypes
    }
    dtype = dtypes[0] if dtypes else ""
    fused: dict[str, float] = {}
    for name, predict in (
        ("grouped_gemm", _grouped_s(device, dtype)),
        ("attention_forward", _attention_s(device, dtype, backward=False)),
        ("attention_backward", _attention_s(device, dtype, backward=True)),
    ):
        found = by_kind.get((name, dtype))
        if found:
            fused[name] = _rate(found, name, errors, predict, TERA)
    host = by_kind.get(("host_link", ""))
    return DeviceFit(
        launch_s=launch_s,
        memory_bytes_per_s=memory,
        flop_per_s=rates,
        dtype=dtype,
        fused_flop_per_s=fused,
        host_bytes_per_s=_rate(host, "host_link", errors, lambda s, rate: s.num_bytes / rate, GB) if host else None,
        errors=tuple(errors),
    )


Predict = Callable[[Sample, float], float]
"""(sample, rate) -> seconds."""


def _rate(samples: Sequence[Sample], name: str, errors: list[ClassError], predict: Predict, unit: float) -> float:
    """The rate that explains the samples best; appends how well."""

    def seconds(values: dict[str, float]) -> list[float]:
        return [predict(sample, values["rate"]) for sample in samples]

    times = [typical(sample.seconds) for sample in samples]
    # The largest sample alone gives the start, which is all but the answer.
    largest = max(range(len(samples)), key=lambda i: times[i])
    start = unit * predict(samples[largest], unit) / times[largest]
    parameter = Parameter(name="rate", start=start, low=start / 100, high=start * 100)
    solution: Solution = solve(seconds, times, [parameter])
    errors.append(solution.error(name))
    return solution.values["rate"]


def _memory_s(device: Device, kind: MemoryBound) -> Predict:
    return lambda sample, rate: memory_bound_s(replace(device, memory_bytes_per_s=rate), sample.num_bytes, kind)


def _with_peak(device: Device, dtype: str, rate: float) -> Device:
    return replace(device, peak_flop_per_s=((dtype, rate),))


def _gemm_s(device: Device, dtype: str) -> Predict:
    # TF32 operands are float32 in memory.
    stored = "float32" if dtype == "tfloat32" else dtype

    def seconds(sample: Sample, rate: float) -> float:
        m, n, k = sample.shape
        return gemm_s(_with_peak(device, stored, rate), stored, m=m, n=n, k=k)

    return seconds


def _grouped_s(device: Device, dtype: str) -> Predict:
    def seconds(sample: Sample, rate: float) -> float:
        groups, m, n, k = sample.shape
        return gemm_s(_with_peak(device, dtype, rate), dtype, batch=groups, m=m, n=n, k=k, grouped=True)

    return seconds


def _attention_s(device: Device, dtype: str, *, backward: bool) -> Predict:
    def seconds(sample: Sample, rate: float) -> float:
        batch, heads, length, head_dim = sample.shape
        return attention_s(
            _with_peak(device, dtype, rate),
            dtype,
            batch=batch,
            heads=heads,
            q_len=length,
            kv_len=length,
            head_dim=head_dim,
            causal=True,
            backward=backward,
        )

    return seconds
