"""Hand-made groups, clusters and measured machines for tests that need no profile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hardware_profiles.cluster import Cluster, Group, GroupLevel, Library, Link, Links
from hardware_profiles.load import load_cluster
from hardware_profiles.samples import Machine

TOY = Path(__file__).with_name("toy.toml")
EVERYTHING = ("ring", "tree", "halving-doubling", "hierarchical", "nvls", "sharp")


def library(
    *algorithms: str,
    protocols: Iterable[str] = ("simple",),
    launch_us: float = 0.0,
    copy_gb_per_s: float = float("inf"),
) -> Library:
    return Library(
        name="nccl",
        algorithms=frozenset(algorithms or ("ring",)),
        protocols=frozenset(protocols),
        launch_s=launch_us / 1e6,
        copy_bytes_per_s=copy_gb_per_s * 1e9,
        compute_slowdown=1.0,
    )


def level(
    fan: int,
    gb_per_s: float = 100.0,
    *,
    latency_us: float = 0.0,
    name: str = "node",
    reduce_gb_per_s: float = 0.0,
    forward_gb_per_s: float = 0.0,
    on_rails: bool = True,
) -> GroupLevel:
    return GroupLevel(
        name=name,
        fan=fan,
        bytes_per_s=gb_per_s * 1e9,
        exchange_bytes_per_s=gb_per_s * 1e9,
        latency_s=latency_us / 1e6,
        reduce_bytes_per_s=reduce_gb_per_s * 1e9,
        forward_bytes_per_s=forward_gb_per_s * 1e9,
        on_rails=on_rails,
    )


def members(*levels: GroupLevel, by: Library | None = None) -> Group:
    size = 1
    for each in levels:
        size *= each.fan
    return Group(size=size, levels=levels, library=library() if by is None else by)


def links(*pairs: tuple[int | str, int | str, float]) -> Links:
    """Links from (end, end, GB/s), all of which collectives reach."""
    parts = (
        Link(between=(a, b), bytes_per_s=rate * 1e9, collective_fraction=1.0, send_fraction=0.85)
        for a, b, rate in pairs
    )
    return Links(links=tuple(parts))


def with_fabric(fabric: Links, shape: str) -> Cluster:
    """The toy cluster with another fabric in its nodes."""
    cluster = load_cluster(f"{TOY}:{shape}")
    machines = tuple(replace(each, node=replace(each.node, fabric=fabric)) for each in cluster.machines)
    return replace(cluster, machines=machines)


def machine(nodes: int, per_node: int = 4) -> Machine:
    return Machine(
        devices=("Toy",),
        num_nodes=nodes,
        devices_per_node=per_node,
        library="nccl",
        driver="1.0",
        runtime="torch 2",
        num_compute_units=10,
        memory_bytes=2**34,
        host_memory_bytes=2**35,
        hosts=("a", "b"),
        date="2026-11-20",
    )
