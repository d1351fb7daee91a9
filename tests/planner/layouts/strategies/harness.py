"""Runs a node of a block as its options say, rank by rank on real numbers, and compares with the whole.

Inputs are laid by their placements (parts, copies, random partial sums), every rank runs the operation on its own
tensors, and outputs are put together again. Then gradients of the outputs are laid by the duals of their placements
(a partial sum where the output is ``B``, a copy where it is ``P``), autograd runs on every rank, and the gradients of
the inputs are put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from planner.layouts.placements import REPLICATE
from planner.layouts.strategies import Option
from tests.planner.layouts.strategies import implementations
from tests.planner.layouts.strategies.pieces import close, lay, noise, put_together
from tests.planner.layouts.strategies.running import Node

Held = Mapping[int, Tensor]


@dataclass(frozen=True)
class Whole:
    """A node on one device."""

    inputs: Held
    outputs: Held
    output_grads: Held
    """Random ones, of those that have a gradient."""
    input_grads: Held


def run_whole(node: Node, inputs: Held, random: torch.Generator) -> Whole:
    """On one device."""
    leaves = {v: leaf(t, v in node.gradients) for v, t in inputs.items()}
    outputs = node.run(leaves)
    grads = {v: noise(t, random) for v, t in outputs.items() if t.requires_grad and v in node.gradients}
    found = gradients([outputs], [leaves], [grads])[0]
    return Whole(
        inputs=inputs,
        outputs={v: t.detach() for v, t in outputs.items()},
        output_grads=grads,
        input_grads={v: grad for v, grad in found.items() if v in node.gradients},
    )


def check(node: Node, option: Option, num_ranks: int, whole: Whole, random: torch.Generator) -> None:
    """Assert that an option gives what the whole gives, forward and backward."""
    read = dict(zip(node.node.inputs, option.inputs, strict=True))
    made = dict(zip(node.node.outputs, option.outputs, strict=True))
    laid = {v: lay(whole.inputs[v], placement, num_ranks, random) for v, placement in read.items()}
    ranks = [{v: leaf(parts[r], v in node.gradients) for v, parts in laid.items()} for r in range(num_ranks)]
    outputs = implementations.run(node, option, ranks)
    for v in node.checked:
        parts = [out[v].detach() for out in outputs]
        assert close(put_together(parts, made[v]), whole.outputs[v]), f"output {v} is not {made[v]}"
    grads: list[dict[int, Tensor]] = [{} for _ in ranks]
    joint = option.implementation != "local"
    for v, grad in whole.output_grads.items():
        for r, part in enumerate(lay(grad, made[v].gradient, num_ranks, random)):
            if not (joint and made[v] == REPLICATE and r):  # ranks that communicate are one graph: a copy counts once
                grads[r][v] = part
    found = gradients(outputs, ranks, grads) if joint else [
        gradients([out], [rank], [grad])[0] for out, rank, grad in zip(outputs, ranks, grads, strict=True)
    ]  # fmt: skip
    for v, expected in whole.input_grads.items():
        parts = [of_rank[v] for of_rank in found]
        assert close(put_together(parts, read[v].gradient), expected), f"gradient of input {v} is not that of {read[v]}"


def leaf(tensor: Tensor, has_gradient: bool) -> Tensor:
    """A tensor of its own."""
    return tensor.detach().clone().requires_grad_(has_gradient)


def gradients(outputs: list[Held], inputs: list[Held], grads: list[Held]) -> list[dict[int, Tensor]]:
    """Gradients of the inputs of ranks that are one graph, given those of the outputs; zero where none arrives."""
    pairs = [(out[v], grad) for out, given in zip(outputs, grads, strict=True) for v, grad in given.items()]
    wanted = [(r, v, t) for r, held in enumerate(inputs) for v, t in held.items() if t.requires_grad]
    found: list[dict[int, Tensor]] = [{v: torch.zeros_like(t) for v, t in held.items()} for held in inputs]
    if pairs and wanted:
        results = torch.autograd.grad(
            [out for out, _ in pairs], [t for *_, t in wanted], [grad for _, grad in pairs], allow_unused=True
        )
        for (r, v, _), result in zip(wanted, results, strict=True):
            if result is not None:
                found[r][v] = result
    return found
