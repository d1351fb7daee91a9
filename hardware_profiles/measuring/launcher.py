"""Which of how many processes this is, as ``torchrun`` or ``srun`` say it in the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hardware_profiles.errors import MeshwrightError


class LaunchError(MeshwrightError):
    """An environment from which the place of this process cannot be told."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among all of them, and where they meet."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int
    agent_store: bool = False
    """The launcher holds the store that ranks meet in, so that it outlives rank 0."""


ALONE = Place(rank=0, world_size=1, local_rank=0, local_world_size=1, address="localhost", port=0)

_RUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OTHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_FIRST_PORT, _PORTS = 20_000, 20_000


def place(environ: Mapping[str, str]) -> Place:
    """The place that ``environ`` names: torchrun's variables, else Slurm's, else one process.

    Raises `LaunchError` with the variable that is missing or not a number.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        missing = [name for name in _RUN if name not in environ]
        if missing:
            raise LaunchError(f"the environment has RANK or WORLD_SIZE, but not {', '.join(missing)}; use torchrun")
        return Place(
            rank=_number(environ, "RANK"),
            world_size=_number(environ, "WORLD_SIZE"),
            local_rank=_number(environ, "LOCAL_RANK"),
            local_world_size=_number(environ, "LOCAL_WORLD_SIZE"),
            address=environ["MASTER_ADDR"],
            port=_number(environ, "MASTER_PORT"),
            agent_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
    # A batch script's own shell has SLURM_PROCID too; only a step's tasks have SLURM_STEP_NODELIST.
    if "SLURM_PROCID" in environ and "SLURM_STEP_NODELIST" in environ:
        return _slurm(environ)
    others = [name for name in _OTHERS if environ.get(name, "1") not in ("", "1")]
    if others:
        raise LaunchError(
            f"{others[0]} = {environ[others[0]]}: start with torchrun or srun; mpirun's ranks cannot meet"
        )
    return ALONE


def _slurm(environ: Mapping[str, str]) -> Place:
    world_size = _number(environ, "SLURM_NTASKS")
    job = _number(environ, "SLURM_JOB_ID") if "SLURM_JOB_ID" in environ else 0
    return Place(
        rank=_number(environ, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_number(environ, "SLURM_LOCALID"),
        local_world_size=_tasks_per_node(environ, world_size),
        address=environ.get("MASTER_ADDR") or first_host(environ["SLURM_STEP_NODELIST"]),
        port=_number(environ, "MASTER_PORT") if "MASTER_PORT" in environ else _FIRST_PORT + job % _PORTS,
    )


def _tasks_per_node(environ: Mapping[str, str], world_size: int) -> int:
    """``8`` from ``SLURM_NTASKS_PER_NODE`` or from ``SLURM_STEP_TASKS_PER_NODE = 8(x2)``."""
    if "SLURM_STEP_TASKS_PER_NODE" not in environ and "SLURM_NTASKS_PER_NODE" in environ:
        return _number(environ, "SLURM_NTASKS_PER_NODE")
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", str(world_size))
    match = re.fullmatch(r"(\d+)(?:\(x\d+\))?", tasks)
    if match is None:
        raise LaunchError(f"SLURM_STEP_TASKS_PER_NODE = {tasks!r}: every node must run the same number of tasks")
    return int(match[1])


def first_host(nodes: str) -> str:
    """The first of Slurm's list of nodes: ``gpu[007-010,12],login`` -> ``gpu007``."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise LaunchError(f"SLURM_STEP_NODELIST = {nodes!r}: names no node")
    return match[1] + (match[2] or "") + (match[3] or "")


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except KeyError:
        raise LaunchError(f"{name} is missing in the environment of this process") from None
    except ValueError:
        raise LaunchError(f"{name} = {environ[name]!r}: not a number") from None
