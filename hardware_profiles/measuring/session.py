"""One run of measuring: all ranks make the same measurements in the same order, and agree on every choice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta
from math import ceil
from socket import gethostname
from statistics import median
from time import monotonic
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from costmodels.units import MILLI, format_seconds
from hardware_profiles.measuring import collectives, kernels
from hardware_profiles.measuring.accelerator import Accelerator, accelerator
from hardware_profiles.measuring.launcher import LaunchError, Place
from hardware_profiles.measuring.sizes import Sizes
from hardware_profiles.measuring.stores import Store
from hardware_profiles.measuring.watchdog import Watchdog
from hardware_profiles.samples import COLLECTIVES, Machine, Measurement, Sample

Value = TypeVar("Value")

_MAX_BATCH = 64
_PARALLEL = 4
"""All-reduces beside the overlapped products take this many times as long as they do."""

_MAX_PARALLEL = 64
_FREE_PART = 0.4
"""Part of the free memory that operands may take."""


Clock = Callable[[Callable[[], object] | None, int, Callable[[], object]], float]
"""Seconds of one of so many calls, beside what the last argument starts."""


class Session:
    """The ranks of a run with their devices, groups and clock."""

    def __init__(self, place: Place, store: Store, watchdog: Watchdog) -> None:
        """Join the other ranks; blocks until all are there, which the watchdog limits."""
        self.place, self.watchdog = place, watchdog
        self.device: Accelerator = accelerator(place.local_rank, place.local_world_size)
        if place.world_size > 1:
            # Longer than the watchdog's limit, which knows better who is missing.
            limit = timedelta(seconds=max(600.0, 10 * watchdog.time_limit_s))
            dist.init_process_group(
                self.device.backend, store=store, rank=place.rank, world_size=place.world_size, timeout=limit
            )
            self._control = dist.group.WORLD if self.device.is_cpu else dist.new_group(backend="gloo", timeout=limit)
        self._groups = collectives.Groups(place.rank, place.world_size)
        self._started = monotonic()
        self._growth: dict[tuple[object, ...], list[tuple[float, float]]] = {}
        self._made = 0

    def machine(self) -> Machine:
        """What is measured, with the memory of the smallest device; `LaunchError` where nodes are not filled evenly."""
        place, device = self.place, self.device
        per_node = place.local_world_size
        if place.world_size % per_node:
            raise LaunchError(f"{place.world_size} ranks do not fill nodes of {per_node}")
        names = self._gathered((gethostname(), device.name, place.local_rank))
        for rank, (_, _, local_rank) in enumerate(names):
            if local_rank != rank % per_node:
                raise LaunchError(
                    f"rank {rank} is number {local_rank} on its node, not {rank % per_node}: ranks must fill one node "
                    "after the other"
                )
        memory, host_memory = self._agree([float(device.memory_bytes), float(device.host_memory_bytes)], "min")
        return Machine(
            devices=tuple(sorted({name for _, name, _ in names})),
            num_nodes=place.world_size // per_node,
            devices_per_node=per_node,
            library=device.library,
            driver=device.driver,
            runtime=device.runtime,
            num_compute_units=device.num_compute_units,
            memory_bytes=round(memory),
            host_memory_bytes=round(host_memory),
            hosts=tuple(sorted({host for host, _, _ in names})),
            date=date.today().isoformat(),
        )

    def dtypes(self) -> list[str]:
        """Names of the dtypes that every rank's device multiplies."""
        per_rank = self._gathered(kernels.usable_dtypes(self.device))
        return [name for name in per_rank[0] if all(name in names for names in per_rank)]

    def run(
        self, plan: Sequence[Measurement], sizes: Sizes, done: Iterable[Sample], keep: Callable[[Sample], None]
    ) -> None:
        """Make the measurements of the plan that rank 0 does not have in ``done``; it passes each to ``keep``.

        Sizes that do not fit the memory, or grow beyond one that was slow, are left out on all ranks; when the time of
        ``sizes`` is over, all the rest is.
        """
        known = self._from_first({sample.measurement: median(sample.seconds) for sample in done})
        for what, seconds in known.items():
            self._growth.setdefault(_family(what), []).append((kernels.work(what), seconds))
        free_bytes, *_ = self._agree([float(self.device.free_bytes)], "min")
        for i, what in enumerate(plan):
            self._made += 1
            self.watchdog.begin(self._made, str(what))
            if what in known or self._too_large(what, free_bytes) or self._too_slow(what, sizes.slow_s):
                continue
            elapsed_s, *_ = self._agree([monotonic() - self._started], "max")
            if elapsed_s > sizes.total_s:
                self._say(f"{len(plan) - i} measurements left out: {sizes.total_s:g} s are over")
                return
            repeats = self._measure(what, sizes)
            self._say(f"[{i + 1}/{len(plan)}] {what}: {format_seconds(median(repeats))}")
            if self.place.rank == 0:
                keep(Sample(**what.model_dump(), seconds=tuple(repeats)))

    def finish(self) -> None:
        """Wait for all ranks and stop watching: nothing can hang any more."""
        self.watchdog.begin(self._made + 1, "the end")
        self._agree([0.0], "max")
        self.watchdog.close()

    def close(self) -> None:
        """Leave the other ranks."""
        if self.place.world_size > 1:
            dist.destroy_process_group()

    def _measure(self, what: Measurement, sizes: Sizes) -> list[float]:
        """Seconds of the repeats, of the rank with the largest median."""
        call, clock, parts = self._prepare(what)
        self._once(call)
        self._barrier()
        pilot_s, *_ = self._agree([clock(call, 1, list)], "max")
        self._growth.setdefault(_family(what), []).append((kernels.work(what), pilot_s))
        batch = min(max(1, round(sizes.batch_s / pilot_s)), _MAX_BATCH)
        if what.kind == "launch":
            batch = _MAX_BATCH
        repeats = min(max(sizes.min_repeats, ceil(sizes.budget_s / (batch * pilot_s))), sizes.max_repeats)
        queued = self._queue(what, batch * pilot_s)
        works: list[dist.Work] = []

        def beside() -> None:
            works.extend(queued())

        seconds = []
        for _ in range(repeats):
            self._barrier()
            seconds.append(clock(call, batch, beside) / parts)
            for work in works:
                work.wait()
            works.clear()
        self.device.synchronize()
        return self._slowest(seconds)

    def _prepare(self, what: Measurement) -> tuple[Callable[[], object] | None, Clock, int]:
        """(the call, its clock, transfers in one call); no call where this rank takes no part."""
        if what.kind in COLLECTIVES:
            call = collectives.collective(self.device, self._groups, what)
            return self._counted(call), self._wall, 2 if what.kind == "send" else 1
        return self._counted(kernels.kernel(self.device, what)), self._kernel, 1

    def _counted(self, call: Callable[[], object] | None) -> Callable[[], object] | None:
        if call is None:
            return None
        watchdog = self.watchdog

        def counted() -> None:
            watchdog.calls += 1
            call()

        return counted

    def _wall(self, call: Callable[[], object] | None, calls: int, _: Callable[[], object]) -> float:
        if call is None:
            # A rank without a part is ahead of those that have one, not behind.
            self.watchdog.calls += calls
            return MILLI * MILLI
        return self.device.wall_s(call, calls)

    def _kernel(self, call: Callable[[], object] | None, calls: int, beside: Callable[[], object]) -> float:
        assert call is not None
        return self.device.kernel_s(call, calls, beside)

    def _once(self, call: Callable[[], object] | None) -> None:
        if call is None:
            self.watchdog.calls += 1
        else:
            call()
            self.device.synchronize()

    def _queue(self, what: Measurement, batch_s: float) -> Callable[[], list[dist.Work]]:
        """For ``overlap_busy``: what queues all-reduces that outlast a repeat of the products; else nothing."""
        if what.kind != "overlap_busy":
            return list
        message = torch.ones(what.num_bytes // collectives.FLOAT32_BYTES, device=self.device.device)
        dist.all_reduce(message)
        self._barrier()
        one_s, *_ = self._agree([self.device.wall_s(lambda: dist.all_reduce(message), 2)], "max")
        times = min(ceil(_PARALLEL * batch_s / one_s), _MAX_PARALLEL)
        return lambda: [dist.all_reduce(message, async_op=True) for _ in range(times)]

    def _too_large(self, what: Measurement, free_bytes: float) -> bool:
        operand_bytes = collectives.operand_bytes if what.kind in COLLECTIVES else kernels.operand_bytes
        return operand_bytes(what) > _FREE_PART * free_bytes

    def _too_slow(self, what: Measurement, slow_s: float) -> bool:
        """Whether a call is expected to take longer than ``slow_s``: from the line through the two largest so far."""
        known = sorted(self._growth.get(_family(what), ()))[-2:]
        work = kernels.work(what)
        if any(pilot_s > slow_s and work > done for done, pilot_s in known):
            return True
        if len(known) < 2 or known[0][0] == known[1][0] or work <= known[1][0]:
            return False
        (work_0, time_0), (work_1, time_1) = known
        return time_1 + (work - work_1) * (time_1 - time_0) / (work_1 - work_0) > slow_s

    def _barrier(self) -> None:
        self._agree([0.0], "max")

    def _agree(self, values: list[float], how: str) -> list[float]:
        """The largest (``max``) or least (``min``) of all ranks' values, the same on all ranks."""
        self.watchdog.calls += 1
        if self.place.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, getattr(dist.ReduceOp, how.upper()), group=self._control)
        return [float(value) for value in tensor]

    def _slowest(self, seconds: list[float]) -> list[float]:
        """The list of the rank with the largest median."""
        if self.place.world_size == 1:
            return seconds
        medians = [0.0] * self.place.world_size
        medians[self.place.rank] = median(seconds)
        medians = self._agree(medians, "max")
        slowest = medians.index(max(medians))
        return self._agree(seconds if self.place.rank == slowest else [0.0] * len(seconds), "max")

    def _gathered(self, value: Value) -> list[Value]:
        """Every rank's value."""
        self.watchdog.calls += 1
        if self.place.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.place.world_size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def _from_first(self, value: Value) -> Value:
        """Rank 0's value."""
        return self._gathered(value)[0]

    def _say(self, text: str) -> None:
        if self.place.rank == 0:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def _family(what: Measurement) -> tuple[object, ...]:
    """Measurements that differ in size only."""
    return what.kind.removeprefix("grouped_"), what.dtype, what.size, what.stride, what.ranks
