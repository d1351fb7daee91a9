"""``meshwright hardware``: see, check, compare, draw and measure hardware profiles."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli_streams import emit, say, width
from planner.errors import ProfileError, UsageError

if TYPE_CHECKING:
    from hardware_profiles.cluster import Cluster

app = typer.Typer(help="Hardware profiles: see, check, compare, draw and measure them.", no_args_is_help=True)

_Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Profile name or TOML file; NAME:8x8 is 8 nodes of 8 devices.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of tables.")]


@app.command("list")
def list_profiles(as_json: _Json = False) -> None:
    """List the hardware profiles that come with Meshwright."""
    from hardware_profiles.load import load_profile, names
    from planner.report import profiles

    known = {name: load_profile(name) for name in names()}
    if as_json:
        _emit_json(profiles.list_json(known))
    else:
        emit(profiles.render_list(known, width=width() if sys.stdout.isatty() else None))


@app.command()
def show(
    name: _Name,
    axes: Annotated[
        str | None, typer.Option(metavar="AXIS=SIZE,...", help="Show what a mesh finds, e.g. tp=8,dp_shard=4,pp=2.")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Nodes x devices per node, e.g. 8x8.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Number of devices, where no shape is given.")] = None,
    as_json: _Json = False,
) -> None:
    """Show a profile with the evidence of its figures, or with --axes the links that a mesh has on it."""
    from hardware_profiles.load import load_cluster, split
    from planner.report import profiles

    source, group, written = split(name)
    if shape is not None:
        if written is not None:
            raise UsageError(f"{name} has a shape already; leave out --shape {shape}")
        name = f"{name}:{shape}"
    profile = profiles.profile_of(source, group)
    color = sys.stdout.isatty()
    shaped = axes is not None or devices is not None or shape is not None or written is not None
    cluster = load_cluster(name, devices) if shaped else None
    content = profiles.profile_json(profile)
    if axes is None or cluster is None:
        report = "" if as_json else profiles.render_profile(profile, width=width(), color=color)
    else:
        from planner.report.axes import axes_json, axes_of, parse_axes, render_axes

        mesh = axes_of(cluster, parse_axes(axes))
        report = render_axes(cluster, mesh, width=width(), color=color)
        content["mesh"] = axes_json(cluster, mesh)
    if as_json:
        _emit_json(content)
    else:
        emit(report)


@app.command()
def validate(file: Annotated[Path, typer.Argument(metavar="FILE", help="Profile file (TOML).")]) -> None:
    """Check a profile file: every fault with its field, value and rule, or a line that sums the profile up."""
    from planner.report.profiles import check_file

    try:
        emit(check_file(file))
    except ProfileError as error:
        # A fault per line, as compilers print them: editors and scripts find the file at its start.
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(error.exit_code) from None


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="Profile name or TOML file.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Profile name or TOML file.")],
    as_json: _Json = False,
) -> None:
    """Compare two profiles: figures that differ with their ratio, and differences in structure."""
    from planner.report import profile_diff
    from planner.report.profiles import profile_of

    both = [profile_of(*_unshaped(name)) for name in (first, second)]
    same = both[0].name == both[1].name
    found = profile_diff.compare(both[0], both[1], (first, second) if same else None)
    if as_json:
        _emit_json(profile_diff.to_json(found))
    else:
        emit(profile_diff.render(found, width=width(), color=sys.stdout.isatty()))


@app.command()
def plot(
    name: _Name,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="SVG file to write; default stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Draw rooflines and collectives' bandwidth as SVG; of a name without a shape up to two nodes."""
    from planner import plan_file
    from planner.report import profile_plot

    if output is not None:
        plan_file.check_output(output, force=force)
    svg = profile_plot.render(_drawn(name))
    if output is None:
        emit(svg)
    else:
        output.write_text(svg, encoding="utf-8")
        say(f"saved {output}")


@app.command()
def measure(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Profile to write (TOML).")],
    name: Annotated[str | None, typer.Option(help="Name of the profile; default from the file.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Packaged profile that gives structure and datasheet figures.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few sizes, less than two minutes.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier attempts with this output.")] = False,
    time_limit: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.001, help="Without progress for as long, ranks are given up.")
    ] = 60.0,
    nccl_tests: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="JSON of nccl-tests to take in; repeatable.")
    ] = None,
) -> None:
    """Measure the machine that this runs on (under torchrun or srun: all of them) and write its profile."""
    from hardware_profiles import measure as measuring

    code = measuring.measure(
        output,
        name=name,
        base=base,
        quick=quick,
        fresh=fresh,
        time_limit_s=time_limit,
        nccl_tests=nccl_tests or (),
    )
    raise typer.Exit(code)


def _drawn(name: str) -> Cluster:
    """The cluster that a plot shows: the one named, or up to two nodes of the profile."""
    from hardware_profiles.load import load_cluster, load_profile, split
    from hardware_profiles.schema import MixedProfile

    source, group, shape = split(name)
    profile = load_profile(source)
    if shape is None and group is None and not isinstance(profile, MixedProfile):
        return load_cluster(name, profile.node.num_devices * (2 if profile.network else 1))
    return load_cluster(name)


def _unshaped(name: str) -> tuple[str, str | None]:
    from hardware_profiles.load import split

    source, group, shape = split(name)
    if shape is not None:
        raise UsageError(f"{name}: profiles are compared without a shape; leave out :{shape}")
    return source, group


def _emit_json(content: Any) -> None:
    emit(json.dumps(content, indent=2) + "\n")
