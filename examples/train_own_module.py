"""Train a module of your own, that returns no loss, in pipeline stages over all processes.

torchrun --nproc-per-node 2 examples/train_own_module.py        (or plain python: one process)
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from planner import Constraints, make_plan, parallelize

BATCH, WIDTH, CLASSES, STEPS = 16, 64, 10, 5
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))


class Classifier(nn.Module):
    """A residual network; children of a ``ModuleList`` are what stages are cut from."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(6))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + F.gelu(block(x))
        return self.head(x)


def main() -> None:
    """Plan with a pin, lay out and train."""
    torch.manual_seed(0)
    model, features = Classifier(), torch.randn(BATCH, WIDTH)
    batch = features, features.argmax(dim=1) % CLASSES  # what forward takes, and last what the loss compares with
    found = make_plan(
        model, example_inputs=batch, loss_fn=F.cross_entropy, hardware="cpu-gloo", devices=WORLD_SIZE,
        global_batch=BATCH, precision="fp32", constraints=Constraints(pp=WORLD_SIZE, microbatch_size=4),
    )  # fmt: skip
    model = parallelize(model, found.plan, F.cross_entropy, example_inputs=batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    for step in range(STEPS):
        loss = model.train_step(batch)
        model.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
