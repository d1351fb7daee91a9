"""The device of this process: CUDA or ROCm, Ascend through torch-npu, or the CPU; what it is called, and how it is
timed."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch

from costmodels.units import KIB, MILLI

LIBRARIES = {"cuda": "nccl", "npu": "hccl", "cpu": "gloo"}
"""torch.distributed's backend by kind of device (RCCL is called ``nccl`` there)."""


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One device, as torch sees it."""

    device: torch.device
    library: Literal["nccl", "rccl", "hccl", "gloo"]
    name: str
    driver: str
    runtime: str
    num_compute_units: int
    memory_bytes: int
    free_bytes: int
    host_memory_bytes: int

    @property
    def backend(self) -> str:
        return LIBRARIES[self.device.type]

    @property
    def is_cpu(self) -> bool:
        return self.device.type == "cpu"

    def synchronize(self) -> None:
        """Wait for all work of the device."""
        if not self.is_cpu:
            _module(self.device.type).synchronize()

    def wall_s(self, call: Callable[[], object], calls: int) -> float:
        """Seconds of one of ``calls`` calls, from the first until the device has finished."""
        self.synchronize()
        start = perf_counter()
        for _ in range(calls):
            call()
        self.synchronize()
        return (perf_counter() - start) / calls

    def kernel_s(self, call: Callable[[], object], calls: int, beside: Callable[[], object]) -> float:
        """Device seconds of one of ``calls`` calls; the host's time to queue them hides behind work queued before.

        ``beside`` starts what is to run at the same time, right before the calls.
        """
        if self.is_cpu:
            beside()
            return self.wall_s(call, calls)
        module = _module(self.device.type)
        begin, end = module.Event(enable_timing=True), module.Event(enable_timing=True)
        filler = torch.empty(8192, 8192, device=self.device, dtype=torch.bfloat16)
        for _ in range(1 + calls // 16):
            filler @ filler
        beside()
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        module.synchronize()
        return float(begin.elapsed_time(end)) * MILLI / calls


def accelerator(local_rank: int, local_world_size: int) -> Accelerator:
    """The device of the process with ``local_rank`` on its host, which becomes torch's current one.

    CUDA or ROCm if there is one, else Ascend if torch-npu can be imported and has one, else the process's share of
    the CPU.
    """
    whole_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    host_bytes = whole_bytes // local_world_size
    runtime = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        # A launcher may show each process its own device only.
        index = 0 if torch.cuda.device_count() == 1 else local_rank
        host_bytes = whole_bytes // max(local_world_size, torch.cuda.device_count())
        torch.cuda.set_device(index)
        properties = torch.cuda.get_device_properties(index)
        free_bytes, memory_bytes = torch.cuda.mem_get_info()
        hip = torch.version.hip
        versions = f"ROCm {hip}, RCCL" if hip else f"CUDA {torch.version.cuda}, NCCL"
        return Accelerator(
            device=torch.device("cuda", index),
            library="rccl" if hip else "nccl",
            name=properties.name,
            driver=_driver("rocm" if hip else "nvidia"),
            runtime=f"{runtime}, {versions} {'.'.join(map(str, torch.cuda.nccl.version()))}",
            num_compute_units=properties.multi_processor_count,
            memory_bytes=memory_bytes,
            free_bytes=free_bytes,
            host_memory_bytes=host_bytes,
        )
    npu = _npu()
    if npu is not None:
        npu.set_device(local_rank)
        free_bytes, memory_bytes = npu.mem_get_info()
        return Accelerator(
            device=torch.device("npu", local_rank),
            library="hccl",
            name=npu.get_device_name(local_rank),
            driver=_driver("npu"),
            runtime=f"{runtime}, torch-npu {importlib.import_module('torch_npu').__version__}",
            num_compute_units=getattr(npu.get_device_properties(local_rank), "cube_core_num", 1),
            memory_bytes=memory_bytes,
            free_bytes=free_bytes,
            host_memory_bytes=host_bytes,
        )
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world_size))
    return Accelerator(
        device=torch.device("cpu"),
        library="gloo",
        name=_cpu_name(),
        driver=f"{platform.system()} {platform.release()}",
        runtime=f"{runtime}, {torch.get_num_threads()} threads",
        num_compute_units=1,
        memory_bytes=host_bytes,
        free_bytes=_available_bytes(host_bytes * local_world_size) // local_world_size,
        host_memory_bytes=host_bytes,
    )


def _module(kind: str) -> Any:
    """``torch.cuda`` or ``torch.npu``, which have the same functions."""
    return getattr(torch, kind)


def _npu() -> Any:
    try:
        importlib.import_module("torch_npu")
    except ImportError:
        return None
    npu = getattr(torch, "npu", None)
    return npu if npu is not None and npu.is_available() else None


def _driver(kind: str) -> str:
    files = {
        "nvidia": "/proc/driver/nvidia/version",
        "rocm": "/sys/module/amdgpu/version",
        "npu": "/usr/local/Ascend/driver/version.info",
    }
    try:
        text = Path(files[kind]).read_text(encoding="utf-8").strip()
    except OSError:
        return f"{kind} driver, version unknown"
    words = text.splitlines()[0].removeprefix("NVRM version: ").split()
    return " ".join(words[:8]) if kind == "nvidia" else f"{kind} {words[0]}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _available_bytes(total_bytes: int) -> int:
    """Memory that can be taken without swapping; half of all where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return total_bytes // 2
    kib = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kib[0] * KIB if kib else total_bytes // 2
