"""Plan from Python: a module on ``meta``, a cluster, and what the plan says.

python examples/plan_in_python.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from my_model import build

from planner import Constraints, make_plan, read_plan, write_plan


def main() -> None:
    """Plan the example model on two A100 nodes, without pipeline stages."""
    with torch.device("meta"):
        model, inputs = build()
    result = make_plan(
        model,
        example_inputs=inputs,
        hardware="a100-80gb:2x8",
        global_batch=256,
        seq_len=2048,
        constraints=Constraints(max_pp=1),
    )
    plan = result.plan
    print(plan.candidate)
    print(f"{result.predicted.step_s:.2f} s per step, of which")
    for term in result.predicted.breakdown.terms:
        print(f"  {term.name:22} {term.seconds:8.3f} s  ({term.low_s:.3f} to {term.high_s:.3f})")
    for layout in plan.layouts:
        print(f"  {layout.pattern:22} {dict(layout.placements)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        write_plan(plan, path)
        assert read_plan(path) == plan


if __name__ == "__main__":
    main()
