"""A job of any size with one rank in it: a process group that talks to nobody, tensors without data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import schedules
from torch.distributed.pipelining._utils import InferenceMode
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def fake_world(rank: int, world_size: int) -> Iterator[None]:
    """A process group of ``world_size`` in which this process is ``rank``; there must be none yet.

    DTensor remembers groups by names that are given out again: one process should be in one world only.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Tensors made inside have sizes and no data. Meshes are to be made outside, for they look at their ranks.

    Two things in torch want data where there is none: ``fully_shard`` joins meshes when parameters are sharded already,
    and pipeline schedules ask the other ranks whether sizes are known (they are).
    """
    concatenate, warm_up = DeviceMesh._concatenate, schedules._PipelineSchedule._warmup_p2p

    def with_data(meshes: list[DeviceMesh]) -> DeviceMesh:
        with unset_fake_temporarily():
            return concatenate(meshes)

    def known(_: object, stages: list, *__: object) -> None:
        for stage in stages:
            stage._inference_mode = InferenceMode.STATIC

    DeviceMesh._concatenate = staticmethod(with_data)  # type: ignore[assignment, method-assign]
    schedules._PipelineSchedule._warmup_p2p = known  # type: ignore[assignment, method-assign]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        DeviceMesh._concatenate = staticmethod(concatenate)  # type: ignore[assignment, method-assign]
        schedules._PipelineSchedule._warmup_p2p = warm_up  # type: ignore[method-assign]
