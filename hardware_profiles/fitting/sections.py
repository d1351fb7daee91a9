"""Fitted figures -> sections of a profile file, each figure with its evidence and source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from costmodels.units import GB, GIB, TERA, microseconds
from hardware_profiles.errors import MeshwrightError
from hardware_profiles.fitting.device import DeviceFit
from hardware_profiles.fitting.links import Level, LinksFit
from hardware_profiles.fitting.robust import ClassError, typical
from hardware_profiles.samples import Machine, Sample
from hardware_profiles.schema import Profile

PEAKS = {
    "float32": "peak_fp32_tflop_per_s",
    "tfloat32": "peak_tf32_tflop_per_s",
    "bfloat16": "peak_bf16_tflop_per_s",
    "float16": "peak_fp16_tflop_per_s",
}
TILES = {"nccl": [256, 128], "rccl": [256, 128], "hccl": [256, 128], "gloo": [32, 32]}
"""Largest GEMM tile where no base says it: current GPUs and NPUs; for CPUs, blocks that stand for cache blocking."""

_ABOVE = 1.05
"""A fraction above this is no measuring error: the base is another device."""

_SMALLEST_FRACTION, _SMALLEST_HOP_US, _LARGEST_RATIO = 1e-3, 1e-2, 1e3
"""What a profile file admits."""

Table = dict[str, Any]


class FitError(MeshwrightError):
    """Samples that do not make a profile: too few, or those of another device than the base's."""


@dataclass(kw_only=True)
class Sections:
    """Builds the sections; collects what is missing and what exceeds the base."""

    machine: Machine
    device: DeviceFit
    links: LinksFit | None
    base: Profile | None
    samples: Sequence[Sample]
    missing: list[str] = field(default_factory=list)
    above: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def build(self) -> Table:
        """All sections; `FitError` where figures are missing, or above what the base has."""
        tables = {} if self.base is None else self.base.model_dump(mode="json", exclude_none=True)
        tables.pop("base", None)
        tables["device"] = self._device(tables.get("device", {}))
        tables["collectives"] = self._collectives(tables.get("collectives"))
        tables["node"] = self._node(tables.get("node"))
        if self.links is not None and self.links.nic is not None:
            tables["nic"] = self._nic(tables.get("nic"), self.links.nic)
            tables.setdefault("network", [self._network()])
        if self.missing:
            raise FitError(
                f"no profile: {', '.join(self.missing)} not measured. Start again with the same output to go on, or "
                "give a base, which has them"
            )
        if self.above:
            raise FitError(
                f"no profile: measured above what base {self.base.name if self.base else ''} has: "
                f"{', '.join(self.above)}. It is another device's; give another base or none, with the "
                "same output: nothing is measured anew"
            )
        return tables

    def _device(self, table: Table) -> Table:
        fit, base = self.device, self.base.device if self.base else None
        peaks = dict(table)
        if base is None:
            for dtype, rate in fit.flop_per_s.items():
                peaks[PEAKS[dtype]] = self._reached(rate / TERA, f"gemm {dtype}")
        if not fit.flop_per_s:
            self._need("matrix products")
        reference = fit.flop_per_s.get(fit.dtype, 1.0)
        if base is None and fit.dtype:
            # Fused kernels of other libraries may be faster than the matrix product; nothing is faster than the peak.
            reference = max(reference, *fit.fused_flop_per_s.values()) if fit.fused_flop_per_s else reference
            peaks[PEAKS[fit.dtype]] = self._reached(reference / TERA, f"gemm {fit.dtype}")
        fraction = {"gemm": fit.flop_per_s.get(fit.dtype, 1.0) / reference}
        if base is not None and fit.dtype:
            figure = getattr(base, PEAKS[fit.dtype])
            if figure is None:
                raise FitError(f"no profile: base {self.base.name if self.base else ''} has no {PEAKS[fit.dtype]}")
            reference, fraction["gemm"] = figure.value * TERA, fit.flop_per_s[fit.dtype] / (figure.value * TERA)
        for dtype in ("tfloat32", "float32"):
            if dtype in fit.flop_per_s and (base is not None or dtype != fit.dtype):
                figure = getattr(base, PEAKS[dtype], None)
                fraction["gemm_fp32"] = fit.flop_per_s[dtype] / (figure.value * TERA) if figure else 1.0
        for name in ("grouped_gemm", "attention_forward", "attention_backward"):
            if name in fit.fused_flop_per_s:
                fraction[name] = fit.fused_flop_per_s[name] / reference
        memory = max(fit.memory_bytes_per_s.values(), default=1.0)
        if base is None:
            peaks["memory_gb_per_s"] = self._reached(memory / GB, max(fit.memory_bytes_per_s, key=_of(fit), default=""))
        else:
            memory = base.memory_gb_per_s.value * GB
        fraction |= {name: rate / memory for name, rate in fit.memory_bytes_per_s.items()}
        peaks.pop("memory_gb", None)
        peaks["memory_gib"] = self._measured(self.machine.memory_bytes / GIB, "what a process can allocate")
        if fit.launch_s is not None:
            peaks["launch_overhead_us"] = self._measured(microseconds(fit.launch_s), "one of a run of smallest kernels")
        if base is None:
            units = self._measured(1.0, "units of the device, as torch's properties say")
            peaks["num_compute_units"] = units | {"value": self.machine.num_compute_units}
            peaks["gemm_tile"] = TILES[self.machine.library]
        names = ("gemm", "grouped_gemm", "attention_forward", "attention_backward", "pointwise", "norm", "optimizer")
        efficiency: Table = dict(table.get("efficiency", {}))
        for name in names:
            if name in fraction and (name != "gemm" or fit.dtype):
                what = self._error(f"gemm {fit.dtype}" if name == "gemm" else name)
                efficiency[name] = self._fraction(fraction[name], f"device.efficiency.{name}", what)
            elif base is None:
                self._need(name)
        if "gemm_fp32" in fraction:
            what = self._error("gemm float32") or self._error("gemm tfloat32")
            efficiency["gemm_fp32"] = self._fraction(fraction["gemm_fp32"], "device.efficiency.gemm_fp32", what)
        peaks["efficiency"] = efficiency
        if fit.host_bytes_per_s is not None:
            peaks["host"] = {
                "link_gb_per_s": self._reached(fit.host_bytes_per_s / GB, "host_link"),
                "memory_gib": self._measured(self.machine.host_memory_bytes / GIB, "one device's share of its host"),
            }
        if base is None and fit.launch_s is None:
            self._need("launch overhead")
        return peaks

    def _collectives(self, table: Table | None) -> Table:
        links = self.links
        if links is None:
            if table is None:
                self._need("collectives")
            return table or {}
        together = "fitted over all collectives"
        memory = self.base.device.memory_gb_per_s.value if self.base else float("inf")
        known = table or {"library": self.machine.library}
        result = known | {
            "algorithms": list(links.algorithms),
            "protocols": list(links.protocols),
            "launch_us": self._measured(microseconds(links.launch_s), together),
            "copy_gb_per_s": self._measured(min(links.copy_bytes_per_s / GB, memory), together),
        }
        slowdown = _slowdown(self.samples)
        if slowdown is not None:
            what = "matrix products while all-reduces run, over the same alone"
            result["compute_slowdown"] = self._measured(min(max(1.0, slowdown), _LARGEST_RATIO), what)
        elif table is None:
            self.warnings.append(
                "collectives.compute_slowdown: not measured, taken as none; give it by hand or measure on"
            )
            result["compute_slowdown"] = _derived(1.0, "not measured, the run ended before: taken as no slowdown")
        return result

    def _node(self, table: Table | None) -> Table:
        level = None if self.links is None else self.links.node
        if level is None:
            if table is not None:
                return table
            if self.machine.devices_per_node > 1 or self.links is None:
                self._need("collectives inside the node")
            unused = "one device a node: there is no link inside"
            return {
                "num_devices": 1,
                "fabric": "switch",
                "gb_per_s": _derived(1.0, unused),
                "latency_us": _derived(1.0, unused),
                "collective_fraction": _derived(1.0, unused),
                "send_fraction": _derived(1.0, unused),
            }
        result = dict(table or {})
        if table is None:
            reached = max(level.fraction, level.send_fraction)
            result |= {"num_devices": self.machine.devices_per_node, "fabric": "switch"}
            result["gb_per_s"] = self._measured(reached, "reached by a device, all groups of an axis at once")
        else:
            reached = 1.0
            for link in result.get("links", ()):
                link.pop("collective_fraction", None)
        return result | self._level(level, reached, "node")

    def _nic(self, table: Table | None, level: Level) -> Table:
        per_node = self.machine.devices_per_node
        if table is None:
            alone = level.fraction if level.alone_fraction is None else level.alone_fraction
            # As many cards as the rate of all devices at once is of one alone's, in numbers that divide the devices.
            count = min(
                (n for n in range(1, per_node + 1) if per_node % n == 0),
                key=lambda n: abs(n - per_node * level.fraction / alone),
            )
            reached = max(alone, level.fraction * per_node / count, level.send_fraction * per_node / count)
            result: Table = {
                "count": count,
                "gb_per_s": self._measured(
                    reached, f"reached by one device alone; {count} cards explain what all reach"
                ),
            }
            shared = count < per_node
            together = level.fraction * per_node / count / reached
            result |= self._level(level, reached * count / per_node, "nic")
            if shared:
                for key, value, what in (
                    ("collective_fraction", alone / reached, "one device alone"),
                    ("contended_fraction", together, "all devices at once"),
                ):
                    result[key] = self._fraction(value, f"nic.{key}", what)
            return result
        result = dict(table) | self._level(level, 1.0, "nic")
        if level.alone_fraction is not None and "contended_fraction" in table:
            what = "groups of different devices at once"
            result["contended_fraction"] = self._fraction(level.fraction, "nic.contended_fraction", what)
            result["collective_fraction"] = self._fraction(
                level.alone_fraction, "nic.collective_fraction", "one device of each node at a time"
            )
        return result

    def _level(self, level: Level, reached: float, section: str) -> Table:
        """Hop and fractions of ``reached``, the bandwidth that the section will have."""
        where = "node" if section == "node" else "network"
        sends, together = self._error(f"send, {where}"), "fitted over all collectives"
        return {
            "latency_us": self._measured(max(microseconds(level.latency_s), _SMALLEST_HOP_US), together),
            "collective_fraction": self._fraction(level.fraction / reached, f"{section}.collective_fraction", together),
            "send_fraction": self._fraction(level.send_fraction / reached, f"{section}.send_fraction", sends)
            if sends
            else _derived(_digits(min(1.0, level.fraction / reached)), "taken as that of collectives"),
        }

    def _network(self) -> Table:
        return {
            "name": "network",
            "latency_us": self._measured(0.0, "measured as a whole: contained in the latency of the cards"),
            "routing": "sprayed",
        }

    def _need(self, what: str) -> None:
        if self.base is None:
            self.missing.append(what)

    def _error(self, name: str) -> str:
        errors: list[ClassError] = [*self.device.errors, *(self.links.errors if self.links else ())]
        return next((str(error) for error in errors if error.name == name), "")

    def _source(self, what: str) -> str:
        machine = self.machine
        count = f"{machine.num_devices} x {', '.join(machine.devices)}"
        return f"meshwright hardware measure, {machine.date}, {count}, {machine.library}: {what}".rstrip(": ")

    def _measured(self, value: float, what: str) -> Table:
        return {"value": _digits(value), "evidence": "measured", "source": self._source(what)}

    def _reached(self, value: float, name: str) -> Table:
        return self._measured(value, f"what was reached, not a datasheet's; {self._error(name)}".rstrip("; "))

    def _fraction(self, value: float, path: str, what: str) -> Table:
        if self.base is not None and value > _ABOVE:
            self.above.append(f"{path} = {value:.2f}")
        if self.base is None and value > _ABOVE:
            self.warnings.append(f"{path}: {value:.2f} of the rate that it is a part of; written as 1")
        of = "of the base's rate" if self.base else "of what was reached"
        return self._measured(min(max(value, _SMALLEST_FRACTION), 1.0), f"{of}; {what}".rstrip("; "))


def _slowdown(samples: Sequence[Sample]) -> float | None:
    """Seconds of products under communication over those alone; None where one of the two is missing."""
    alone = [typical(sample.seconds) for sample in samples if sample.kind == "overlap_alone"]
    busy = [typical(sample.seconds) for sample in samples if sample.kind == "overlap_busy"]
    return median(busy) / median(alone) if alone and busy else None


def _derived(value: float, source: str) -> Table:
    return {"value": value, "evidence": "derived", "source": source}


def _digits(value: float) -> float:
    """Four significant digits: no measurement knows more."""
    return float(f"{value:.4g}")


def _of(fit: DeviceFit) -> Any:
    return fit.memory_bytes_per_s.__getitem__
