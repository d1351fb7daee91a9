"""Train a transformers model from its configuration class (nothing is downloaded), tensor-parallel over all processes.

torchrun --nproc-per-node 2 examples/train_hf.py        (or plain python: one process)
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from planner import Constraints, make_plan, parallelize

BATCH, SEQ_LEN, STEPS = 4, 32, 5
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))


def main() -> None:
    """Plan with a pin, lay out and train."""
    config = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)  # with weights, equal on every process
    ids = torch.randint(0, config.vocab_size, (BATCH, SEQ_LEN), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "labels": ids}  # this model shifts its labels itself, and returns a loss
    found = make_plan(
        model, example_inputs=batch, hardware="cpu-gloo", devices=WORLD_SIZE, global_batch=BATCH, seq_len=SEQ_LEN,
        precision="fp32", constraints=Constraints(tp=WORLD_SIZE),
    )  # fmt: skip
    model = parallelize(model, found.plan, example_inputs=batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

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
