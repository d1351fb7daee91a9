"""Bytes that a training state takes on one device: parameters, gradients, optimizer states, by recipe and sharding.

Notation: ``P`` parameters on the device's pipeline stage after tensor parallelism, ``d`` the size of ``dp_shard``.

    part                  zero 0     1          2          3
    parameters            p P        p P / d    p P / d    p P / d
    compute copy          c P        c P        c P        c (two largest blocks)
    gradients             g P        g P        g P / d    g P / d
    optimizer states      s P        s P / d    s P / d    s P / d

with ``p, c, g, s`` bytes per parameter of `Precision` and `Optimizer`. Stages as in ZeRO (Rajbhandari et al. 2020,
section 5); 1 to 3 are what torch's ``fully_shard`` does with parameters kept gathered and gradients accumulated whole
(1), kept gathered and reduced at every microbatch (2), and with the default, everything sharded (3; it gathers one
block ahead).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
"""Numbers of parameters, or bytes, of any shape: one entry per stage that is asked about."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bytes per parameter of one recipe."""

    compute_dtype: str
    """torch dtype name in which the model computes."""
    param_bytes: int
    """The parameter that the optimizer updates."""
    copy_bytes: int
    """Its copy in ``compute_dtype``; 0 when the model computes on the parameter itself (unless it is sharded)."""
    gathered_bytes: int
    """One gathered parameter, as communicated and computed with."""
    grad_bytes: int
    """One stored gradient."""
    reduced_bytes: int
    """One gradient as communicated."""
    state_bytes: int
    """One optimizer state."""
    source: str


PRECISIONS = {
    "bf16": Precision(
        compute_dtype="bfloat16", param_bytes=4, copy_bytes=2, gathered_bytes=2, grad_bytes=4, reduced_bytes=4,
        state_bytes=4,
        source="fully_shard MixedPrecisionPolicy(param_dtype=bfloat16, reduce_dtype=float32), torchtitan's default",
    ),
    "bf16-reduced": Precision(
        compute_dtype="bfloat16", param_bytes=4, copy_bytes=2, gathered_bytes=2, grad_bytes=4, reduced_bytes=2,
        state_bytes=4,
        source="fully_shard MixedPrecisionPolicy(param_dtype=bfloat16, reduce_dtype=bfloat16)",
    ),
    "fp16": Precision(
        compute_dtype="float16", param_bytes=4, copy_bytes=2, gathered_bytes=2, grad_bytes=2, reduced_bytes=2,
        state_bytes=4,
        source="Micikevicius et al. 2018, Mixed Precision Training: fp16 parameters, gradients; fp32 master and states",
    ),
    "bf16-pure": Precision(
        compute_dtype="bfloat16", param_bytes=2, copy_bytes=0, gathered_bytes=2, grad_bytes=2, reduced_bytes=2,
        state_bytes=2,
        source="model.to(bfloat16): parameters, gradients and optimizer states all in bfloat16",
    ),
    "fp32": Precision(
        compute_dtype="float32", param_bytes=4, copy_bytes=0, gathered_bytes=4, grad_bytes=4, reduced_bytes=4,
        state_bytes=4,
        source="torch defaults",
    ),
}  # fmt: skip
"""Recipes by the name that a user gives."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a framework holds otherwise than the table of the module docstring. The defaults are torch's
    ``fully_shard`` and ``cross_entropy``."""

    accumulated_bytes: int | None = None
    """One stored gradient, where the framework and not the precision says so."""
    passing_bytes: int = 0
    """Per parameter, gradients in the compute precision beside the accumulated ones: DeepSpeed's ``BF16_Optimizer``
    adds them up when the whole backward pass is over (``bf16_optimizer.py``, ``update_hp_grads``)."""
    buffer_bytes: int = 0
    """Flat buffers of a fixed size, for gathered parameters and gradients under way."""
    upcast_norms: bool = False
    """Norms are written in torch operations over fp32 copies, one of which is kept (Hugging Face's
    ``LlamaRMSNorm``)."""
    logit_bytes: int | None = None
    """Per logit, the most that is alive around the loss; None: what the traced operations say, 12 with torch's loss in
    fp32 (log-probabilities, their gradient, the logits' gradient)."""
    narrow_inputs: bool = False
    """Products in 8 bits or less keep their inputs as they read them, not in the compute precision
    (TransformerEngine)."""
    native_groups: bool = False
    """Attention reads the keys and values of grouped queries without copies of them (TransformerEngine,
    FlashAttention)."""
    sent_outputs_freed: bool = False
    """What a pipeline stage has sent is freed (Megatron's ``deallocate_pipeline_outputs``); DeepSpeed's buffers and
    torch keep it until the backward pass."""
    regather: bool = False
    """With sequence parallelism, the gathered input of a column-parallel product is gathered once more in the backward
    pass instead of kept (Korthikanti et al. 2022, section 4.2.2); torch's DTensor linears keep it."""


TORCH = Recipe()
"""Nothing otherwise."""

OPTIMIZERS = {"adamw": 2, "adam": 2, "sgd": 0, "sgd-momentum": 1}
"""Optimizer states per parameter."""


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """What one stage's training state takes on one device."""

    parameters: Array
    compute_copy: Array
    gradients: Array
    optimizer: Array


def state_bytes(
    *,
    precision: Precision,
    num_states: int,
    zero_stage: int,
    dp_shard: int,
    numel: Array,
    trained_numel: Array,
    gathered_numel: Array,
) -> StateBytes:
    """The table of the module docstring.

    Args:
        numel: ``P``.
        trained_numel: those of ``P`` that receive gradients; frozen ones have neither gradients nor optimizer states.
        gathered_numel: parameters of the two largest neighbouring blocks, gathered at once under ZeRO-3.
    """
    share = dp_shard if zero_stage else 1
    grad_share = dp_shard if zero_stage >= 2 else 1
    copy_bytes = precision.gathered_bytes if zero_stage else precision.copy_bytes
    return StateBytes(
        parameters=precision.param_bytes * numel / share,
        compute_copy=copy_bytes * (gathered_numel if zero_stage == 3 else numel),
        gradients=precision.grad_bytes * trained_numel / grad_share,
        optimizer=precision.state_bytes * num_states * trained_numel / share,
    )


def optimizer_step_bytes(*, precision: Precision, num_states: int, numel: float) -> float:
    """Bytes that a fused optimizer step moves: read parameter, gradient, states; write parameter, states."""
    return numel * (2 * precision.param_bytes + precision.grad_bytes + 2 * num_states * precision.state_bytes)
