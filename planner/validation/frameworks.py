"""How the frameworks of published runs execute a layout, generation by generation.

A generation is told by the framework's name, version and, where a source states them, its flags (flash attention,
overlap, compilation). Statements of a row come before the generation's defaults; no rule looks at a model or a result.
"""

from __future__ import annotations

from dataclasses import replace

from planner.execution import Execution
from planner.validation.cases import Case

EAGER_CALL_S = 15e-6
"""Host time per ATen call of eager torch: Python, dispatcher and autograd."""

_MEGATRON_2021 = Execution(
    attention="unfused", dropout=True, fused_pointwise=True, early_stop=False, scatter_sends=True, overlap_gradients=False,
    overlap_gather=False, overlap_send=False, host_call_s=EAGER_CALL_S, accumulate_bytes=8,
)  # fmt: skip
"""Megatron-LM and Megatron-DeepSpeed before flash attention: fused softmax, bias and activation kernels, gradients
reduced after the backward pass, blocking sends (Narayanan et al. 2021, section 4)."""

_MEGATRON_CORE = Execution(
    fused_pointwise=True, early_stop=False, scatter_sends=True, overlap_send=False, host_call_s=EAGER_CALL_S, accumulate_bytes=8,
)  # fmt: skip
"""Megatron-Core with TransformerEngine: flash attention, fused kernels, distributed optimizer with both overlaps."""

_FSDP = Execution(host_call_s=EAGER_CALL_S)
"""Eager torch under FSDP, DeepSpeed ZeRO-3 and their like."""

_GENERATIONS = {
    "megatron-deepspeed": _MEGATRON_2021,
    "gpt-neox": _MEGATRON_2021,
    "sailor": _MEGATRON_2021,
    "megatron-lm": _MEGATRON_CORE,
    "megatron-core": _MEGATRON_CORE,
    "megatron-bridge": _MEGATRON_CORE,
    "nemo": _MEGATRON_CORE,
    "mindspeed": _MEGATRON_CORE,
    "mindformers": _MEGATRON_CORE,
    "internevo": replace(_MEGATRON_CORE, fused_pointwise=False, host_call_s=EAGER_CALL_S),
    "paddlenlp": replace(_MEGATRON_CORE, fused_pointwise=False, host_call_s=EAGER_CALL_S),
    "llm-foundry": replace(_FSDP, attention="flash1"),
    "torchtitan": _FSDP,
    "fsdp": _FSDP,
    "yafsdp": _FSDP,
    "deepspeed": _FSDP,
    "xtuner": _FSDP,
    "maxtext": replace(_FSDP, fused_pointwise=True, host_call_s=0.0),
}

LOW_PRECISION = {"fp8": "float8_e4m3fn", "mxfp8": "float8_e4m3fn", "nvfp4": "float4_e2m1fn_x2"}


def execution_of(case: Case) -> tuple[Execution, tuple[str, ...]]:
    """How the run was executed, and what was assumed."""
    assumed: list[str] = []
    found = _GENERATIONS.get(case.framework)
    if found is None:
        found = _MEGATRON_CORE if (case.tp or 1) * (case.pp or 1) > 1 else _FSDP
        assumed.append(
            f"unknown framework {case.framework}: executed like {'Megatron-Core' if found is _MEGATRON_CORE else 'FSDP'}"
        )
    if case.framework == "megatron-lm" and case.date and case.date < "2023":
        found = _MEGATRON_2021
    if case.flash_attention is not None:
        fused = "flash2" if found.attention == "unfused" else found.attention
        found = replace(found, attention=fused if case.flash_attention else "unfused")
    if case.compiled:
        found = replace(found, fused_pointwise=True, host_call_s=0.0)
    if "grad_reduce" in case.overlap or "zero" in case.overlap:
        found = replace(found, overlap_gradients=True)
    if "no_grad_reduce" in case.overlap:
        found = replace(found, overlap_gradients=False)
    if "param_gather" in case.overlap or "zero" in case.overlap:
        found = replace(found, overlap_gather=True)
    if "tp" in case.overlap:
        found = replace(found, overlap_tp=True)
    if "pp" in case.overlap:
        found = replace(found, overlap_send=True)
    if "ep" in case.overlap:
        found = replace(found, overlap_experts=True)
    if case.precision in LOW_PRECISION:
        found = replace(found, linear_dtype=LOW_PRECISION[case.precision])
    if case.precision == "fp16":
        found = replace(found, accumulate_bytes=min(found.accumulate_bytes, 6))
    return found, tuple(assumed)
