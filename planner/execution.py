"""`Execution`: how a training framework runs a layout. It changes seconds and bytes, never what is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from costmodels.memory import TORCH, Recipe


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Kernels, overlap and bookkeeping of one generation of a framework. The defaults are eager torch with
    ``fully_shard``."""

    generation: str = "torch"
    """Short name of the framework's generation: what constants of calibration may belong to."""
    attention: Literal["vendor", "flash2", "flash1", "unfused"] = "vendor"
    """Fused attention by generation (`costmodels.attention.FlashGeneration`), or batched products with the scores in
    memory."""
    fused_pointwise: bool = False
    """Runs of operations that only move memory are one kernel each (torch.compile, Megatron's and TE's fusions)."""
    dropout: bool = False
    """Attention probabilities and the two residual branches pass through dropout."""
    linear_dtype: str | None = None
    """dtype of the products in repeated blocks, where it is lower than the compute precision (``float8_e4m3fn``);
    activations, weights and gradients are cast on the way in."""
    overlap_gradients: bool = True
    """Gradient reduction runs behind the last microbatch's backward."""
    overlap_gather: bool = True
    """Parameter gathers run behind the computation of the block before."""
    overlap_tp: float = 0.0
    """Share of tensor-parallel communication, at most ``(tp - 1) / tp``, that slices of products hide (async-TP,
    TransformerEngine's userbuffers, MC2)."""
    overlap_send: bool = True
    """Pipeline sends run beside computation; otherwise both ranks wait for them."""
    scatter_sends: bool = False
    """Ranks of ``tp`` send a part each of what all of them hold, and gather it on arrival (Narayanan et al. 2021,
    section 4.1; DeepSpeed's partitioned pipeline buffers)."""
    clip_gradients: bool = False
    """The norm of all gradients is taken before the optimizer step, which reads them once more."""
    offload_activations: bool = False
    """What blocks keep for their backward pass is copied to host memory and back, beside computation."""
    overlap_experts: bool = False
    """Expert dispatch and combine run beside another microbatch's computation, as far as there is any."""
    dispatch_once: bool = False
    """A token goes once to every device that holds an expert of its choice, and once to every node that has such a
    device (DeepEP, HybridEP); otherwise once per expert (all-to-all)."""
    waits_for_routing: bool = False
    """Routing is dropless and the host has to know how many rows every expert gets: it waits for the device in every
    block, and is not ahead of it between routing and combining."""
    expert_products: Literal["one", "each"] = "one"
    """All experts of a device are multiplied by one kernel, or one after another (TransformerEngine's ``GroupedLinear``
    over cuBLAS)."""
    fused_experts: bool = False
    """Kernels of experts' products apply the activation and cast their results."""
    expert_call_s: float = 0.0
    """Least time of the product of one expert where ``expert_products`` is ``each``: the host launches its kernels. It
    has no others in stock, for it had to wait to learn how many rows each expert has."""
    early_stop: bool = True
    """Recomputing a block ends where the last tensor that its backward pass needs is there (non-reentrant
    ``torch.utils.checkpoint``); otherwise the whole block runs again."""
    accumulate_bytes: int = 0
    """Bytes moved per parameter and microbatch to add to a gradient kept apart from autograd's (Megatron's
    ``main_grad``: read and write fp32)."""
    host_call_s: float = 0.0
    """Host time per ATen call of the model, views included: Python, dispatcher, autograd. Where a pass of a block takes
    the host longer than the device, the device waits."""
    time_factor: tuple[tuple[str, float], ...] = ()
    """Factors on the seconds of classes of operations (`planner.solvers.classes.CLASSES`), where a run is known to
    differ from what the device's figures promise (`planner.calibration`)."""

    recipe: Recipe = TORCH
    """What the framework keeps in memory otherwise than torch."""

    def factor(self, kind: str) -> float:
        """Of ``time_factor``, that of one class; 1 where it has none."""
        return dict(self.time_factor).get(kind, 1.0)


EAGER = Execution()
"""Nothing but the device's own figures: eager kernels, and the vendor's attention."""

CALL_S = 15e-6
"""Host time per ATen call of eager torch: Python, dispatcher, autograd. Of the order that its profiler shows for small
operators; processors differ by a factor of two, which the constants of calibration take up."""

TORCH_EAGER = Execution(attention="flash2", host_call_s=CALL_S, clip_gradients=True)
"""Eager torch with ``fully_shard``, as it is planned for and as published runs of it are priced."""
