"""This process as one rank of a job."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore


def join(device: torch.device | str | None) -> torch.device:
    """This rank's device; the process group is made where there is none."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device is None:
        gloo = dist.is_initialized() and dist.get_backend() == "gloo"
        device = f"cuda:{local}" if torch.cuda.is_available() and not gloo else "cpu"
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        settings: dict[str, Any] = {} if "RANK" in os.environ else {"store": HashStore(), "rank": 0, "world_size": 1}
        if device.type == "cuda":
            settings["device_id"] = device
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **settings)
    return device
