"""A whole run: meet, measure, fit, write, and what to do when a rank is lost on the way."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hardware_profiles.errors import MeshwrightError
from hardware_profiles.figures import NAME_PATTERN
from hardware_profiles.fit import Fitted, fit
from hardware_profiles.fitting.sections import FitError
from hardware_profiles.load import load_profile
from hardware_profiles.measuring.launcher import Place
from hardware_profiles.measuring.session import Session
from hardware_profiles.measuring.sizes import Sizes, collective_plan, device_plan
from hardware_profiles.measuring.stores import meet
from hardware_profiles.measuring.watchdog import Verdict, Watchdog
from hardware_profiles.nccl_tests import read_nccl_tests, with_nccl_tests
from hardware_profiles.samples import Machine, Sample, SampleFile, read_samples, samples_path
from hardware_profiles.write import profile_text


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asks for."""

    output: Path
    name: str
    sizes: Sizes
    base: str | None = None
    fresh: bool = False
    time_limit_s: float = 60.0
    nccl_tests: tuple[Path, ...] = ()
    command: str = ""


def run(place: Place, options: Options) -> int:
    """Measure as the rank ``place``, and write the profile on rank 0; the exit code.

    Raises `MeshwrightError` for what the user can mend: before anything is measured where that can be told by then.
    """
    _check(place, options)
    store = meet(place, options.time_limit_s)

    def save(verdict: Verdict) -> None:
        _save(options, verdict)

    # A connection of its own, so that the watchdog is heard while the main thread waits for the store.
    watchdog = Watchdog(
        meet(place, options.time_limit_s, second=True) if place.world_size > 1 else store,
        place.rank,
        place.world_size,
        time_limit_s=options.time_limit_s,
        save=save,
    )
    watchdog.start()
    file: SampleFile | None = None
    try:
        session = Session(place, store, watchdog)
        machine = session.machine()
        if place.rank == 0:
            file = SampleFile.open(samples_path(options.output), machine, fresh=options.fresh and not _restarted())
        dtypes = session.dtypes()
        plan = [
            *device_plan(options.sizes, dtypes, accelerator=not session.device.is_cpu),
            *collective_plan(options.sizes, machine.num_nodes, machine.devices_per_node, dtypes[0]),
        ]
        session.run(plan, options.sizes, list(file.samples) if file else (), file.append if file else _drop)
        session.finish()
    except MeshwrightError as error:
        watchdog.fail(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  Whatever fails in one rank is to be named, and must not leave the others waiting.
        watchdog.fail(f"{type(error).__name__}: {error}")
    if file is not None:
        write_profile(options, file.machine, file.samples)
    session.close()
    return 0


def write_profile(options: Options, machine: Machine, samples: Sequence[Sample]) -> Fitted:
    """Fit the samples and write the profile; says how well it fits."""
    machine, samples = with_nccl_tests(machine, samples, options.nccl_tests)
    fitted = fit(machine, samples, name=options.name, base=options.base)
    options.output.write_text(profile_text(fitted, machine, command=options.command), encoding="utf-8")
    for error in fitted.errors:
        _say(f"  {error}")
    for warning in fitted.warnings:
        _say(f"warning: {warning}")
    _say(f"wrote {options.output} from {len(samples)} measurements")
    return fitted


def _check(place: Place, options: Options) -> None:
    """What is wrong before anything is measured."""
    if not re.fullmatch(NAME_PATTERN, options.name):
        raise MeshwrightError(
            f"name {options.name!r}: lower case letters, digits, '-' and '_', a letter or digit first"
        )
    for path in options.nccl_tests:
        read_nccl_tests(path)
    if options.base is not None:
        load_profile(options.base)
    elif place.world_size == 1 and not options.nccl_tests:
        raise MeshwrightError(
            "one process measures one device and no links: start it under torchrun or srun on all devices, or give a "
            "base, a packaged profile from which the links are taken"
        )


def _save(options: Options, verdict: Verdict) -> None:
    """Write the profile from what was measured until a rank was lost."""
    path = samples_path(options.output)
    if not path.exists():
        _say(f"nothing saved: there is no {path} on this host")
        return
    try:
        machine, samples = read_samples(path)
        write_profile(options, machine, samples)
    except FitError as error:
        _say(str(error))
    except MeshwrightError as error:
        _say(f"nothing saved: {error}")
        return
    _say(f"{len(samples)} measurements are kept in {path}; start again with the same output to go on")


def _restarted() -> bool:
    """The launcher started this run again: what the first attempt measured is not to be forgotten."""
    return any(os.environ.get(name, "0") != "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def _drop(sample: Sample) -> None:
    """Only rank 0 keeps samples."""


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
