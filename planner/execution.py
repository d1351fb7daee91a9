"""`Execution`: how a training framework runs a layout. It changes seconds and bytes, never what is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Kernels, overlap and bookkeeping of one generation of a framework. The defaults are eager torch with
    ``fully_shard``."""

    attention: Literal["flash2", "flash1", "unfused"] = "flash2"
    """Fused attention by generation (what torch and vendor libraries have today, FlashAttention-1), or batched products
    with the scores in memory."""
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
    overlap_tp: bool = False
    """Products and tensor-parallel collectives are sliced into ``tp`` parts that run side by side (async-TP,
    TransformerEngine's userbuffers, MC2)."""
    overlap_send: bool = True
    """Pipeline sends run beside computation; otherwise both ranks wait for them."""
    scatter_sends: bool = False
    """Ranks of ``tp`` send a part each of what all of them hold, and gather it on arrival (Narayanan et al. 2021, section
    4.1; DeepSpeed's partitioned pipeline buffers)."""
    overlap_experts: bool = False
    """Expert dispatch and combine run beside another microbatch's computation."""
    early_stop: bool = True
    """Recomputing a block ends where the last tensor that its backward pass needs is there (non-reentrant
    ``torch.utils.checkpoint``); otherwise the whole block runs again."""
    accumulate_bytes: int = 0
    """Bytes moved per parameter and microbatch to add to a gradient kept apart from autograd's (Megatron's
    ``main_grad``: read and write fp32)."""
    host_call_s: float = 0.0
    """Host time per ATen call of the model, views included: Python, dispatcher, autograd. Where a pass of a block takes
    the host longer than the device, the device waits."""
    step_overhead_s: float = 0.0
    """Host time per step that nothing hides: data loading, logging, synchronisation."""
    time_factor: tuple[tuple[str, float], ...] = ()
    """Factors on the seconds of classes of operations (`planner.solvers.prices.PassSeconds`), where a generation's own
    kernels are known to differ from the device's best ones."""


EAGER = Execution()
"""Eager torch with ``fully_shard``."""
