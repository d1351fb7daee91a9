"""Settings and meshes for the tests of block layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from hardware_profiles.cluster import Cluster
from hardware_profiles.load import load_cluster
from planner import models
from planner.capture.families import family_graph
from planner.job import Job
from planner.solvers.block_layout.mesh import LayoutMesh
from planner.solvers.setting import Setting
from tests.planner.layouts.small import SEQ_LEN, graph

AXES = ("a", "b", "c")
SMALL: dict[str, Any] = {"dim": 512, "num_heads": 8, "num_kv_heads": 8, "head_dim": 64, "hidden_dim": 2048,
                         "num_layers": 4, "vocab_size": 1024}  # fmt: skip
"""A Llama whose weights are few beside its activations."""


def mesh_of(cluster: Cluster, *sizes: int, axes: Sequence[str] = AXES) -> LayoutMesh:
    return LayoutMesh(cluster, tuple(axes[: len(sizes)]), sizes)


@cache
def slow(devices: int) -> Cluster:
    """One node whose devices compute and stream so slowly that even tiny tensors are worth sharding."""
    cluster = load_cluster(f"h100-sxm:1x{devices}")
    device = cluster.device
    peaks = tuple((name, rate / 1e6) for name, rate in device.peak_flop_per_s)
    slowed = replace(device, peak_flop_per_s=peaks, memory_bytes_per_s=device.memory_bytes_per_s / 1e6)
    return replace(cluster, device=slowed)


def tiny(family: str, cluster: Cluster, *, batch: int) -> Setting:
    """A small model that is traced; images have no sequence."""
    made = graph(family)
    return Setting(made, cluster, Job(global_batch=batch, seq_len=made.fixed_seq_len or SEQ_LEN, precision="fp32"))


def llama(cluster: str, *, batch: int, seq_len: int, precision: str = "bf16", **sizes: Any) -> Setting:
    """A Llama of any size."""
    config = replace(models.preset("llama3-8b").config, **sizes | {"max_seq_len": max(seq_len, 8)})
    dtype = "float32" if precision == "fp32" else "bfloat16"
    job = Job(global_batch=batch, seq_len=seq_len, precision=precision)
    return Setting(family_graph(config, seq_len=seq_len, compute_dtype=dtype), load_cluster(cluster), job)
