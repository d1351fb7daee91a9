"""``python -m hardware_profiles.measure``: measures the machine that it runs on, and writes its profile.

On every node of a cluster

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m hardware_profiles.measure -o cluster.toml

or ``srun --ntasks-per-node 8 python -m hardware_profiles.measure -o cluster.toml``; without either it measures one
device.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hardware_profiles.errors import MeshwrightError
from hardware_profiles.measuring.launcher import place
from hardware_profiles.measuring.run import Options, run
from hardware_profiles.measuring.sizes import FULL, QUICK


def measure(
    output: Path,
    *,
    name: str | None = None,
    base: str | None = None,
    quick: bool = False,
    fresh: bool = False,
    time_limit_s: float = 60.0,
    nccl_tests: Sequence[Path] = (),
) -> int:
    """Measure, fit, and write the profile ``output``; the exit code: 0, 5 where a rank was lost, 128 + signal.

    name: of the profile; None: from the name of the file.
    base: packaged profile that gives structure and datasheet rates; None: what is reached is what is written.
    quick: few sizes, less than two minutes.
    fresh: forget what earlier attempts with this output measured.
    time_limit_s: without progress for as long, ranks are named and what was measured is saved.
    nccl_tests: JSON files of nccl-tests to take collectives from as well.

    Every rank calls this with the same arguments. Raises `MeshwrightError` for what the user can mend.
    """
    if output.suffix != ".toml":
        raise MeshwrightError(f"output {output}: a profile is a .toml file")
    if time_limit_s <= 0:
        raise MeshwrightError(f"time limit of {time_limit_s:g} s: must be above 0")
    options = Options(
        output=output,
        name=name or profile_name(output.stem),
        sizes=QUICK if quick else FULL,
        base=base,
        fresh=fresh,
        time_limit_s=time_limit_s,
        nccl_tests=tuple(nccl_tests),
        command=" ".join(sys.argv[3:] if sys.argv[1:3] == ["hardware", "measure"] else sys.argv[1:]),
    )
    return run(place(os.environ), options)


def profile_name(stem: str) -> str:
    """A file's stem as a profile's name: lower case, other signs than letters, digits and ``_`` as dashes."""
    name = re.sub(r"[^a-z0-9_]+", "-", stem.lower()).strip("-_")
    return name or "measured"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hardware_profiles.measure", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="profile to write, a .toml file")
    parser.add_argument("--name", help="name of the profile; default: from the file")
    parser.add_argument("--base", help="packaged profile that gives structure and datasheet rates")
    parser.add_argument("--quick", action="store_true", help="few sizes, less than two minutes")
    parser.add_argument("--fresh", action="store_true", help="forget earlier attempts with this output")
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="SECONDS", help="of a rank without progress")
    parser.add_argument(
        "--nccl-tests",
        type=Path,
        action="append",
        default=[],
        metavar="JSON",
        help="a file of nccl-tests -J to take in",
    )
    arguments = parser.parse_args()
    try:
        return measure(
            arguments.output,
            name=arguments.name,
            base=arguments.base,
            quick=arguments.quick,
            fresh=arguments.fresh,
            time_limit_s=arguments.time_limit,
            nccl_tests=arguments.nccl_tests,
        )
    except MeshwrightError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
