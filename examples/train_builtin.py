"""Train a built-in architecture at a size of your own, planned for the processes at hand.

torchrun --nproc-per-node 2 examples/train_builtin.py        (or plain python: one process)
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from planner import auto_parallelize, models

BATCH, SEQ_LEN, STEPS = 8, 64, 5


def main() -> None:
    """Plan, lay out and train a small Llama on made-up text."""
    config = replace(
        models.preset("llama3-8b").config,
        dim=128, num_layers=4, num_heads=4, num_kv_heads=2, hidden_dim=256, vocab_size=512,
    )  # fmt: skip
    with torch.device("meta"):  # no weights yet: every process makes its own part of them
        model, inputs = models.build_from_config(config)
    torch.manual_seed(0)
    model = auto_parallelize(model, inputs, hardware="cpu-gloo", global_batch=BATCH, seq_len=SEQ_LEN, precision="fp32")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    text = torch.randint(0, config.vocab_size, (BATCH, SEQ_LEN + 1), generator=torch.Generator().manual_seed(1))
    for step in range(STEPS):
        loss = model.train_step((text[:, :-1], text[:, 1:]))  # all samples: every process takes its share
        model.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
