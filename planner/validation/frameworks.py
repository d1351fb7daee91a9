"""How the frameworks of published runs execute a layout, generation by generation.

A generation is told by the framework's name, version and, where a source states them, its flags (flash attention,
overlap, compilation). Statements of a row come before the generation's defaults; no rule looks at a result. NVIDIA's
own tables run its performance recipes, which differ from a library's defaults: they are told by the machine's name
(``dgx-``).
"""

from __future__ import annotations

from dataclasses import replace

from planner.execution import CALL_S, TORCH_EAGER, Execution
from planner.validation.cases import Case
from planner.validation.memory import recipe_of

_MEGATRON_2021 = Execution(
    generation="megatron-2021", attention="unfused", dropout=True, fused_pointwise=True, early_stop=False,
    scatter_sends=True, overlap_gradients=False, overlap_gather=False, overlap_send=False, host_call_s=CALL_S,
    accumulate_bytes=8, clip_gradients=True,
)  # fmt: skip
"""Megatron-LM and Megatron-DeepSpeed before flash attention: fused softmax, bias and activation kernels, gradients
reduced after the backward pass, blocking sends (Narayanan et al. 2021, section 4)."""

_MEGATRON_CORE = Execution(
    generation="megatron-core", fused_pointwise=True, early_stop=False, scatter_sends=True, overlap_send=False,
    host_call_s=CALL_S, accumulate_bytes=8, clip_gradients=True,
)  # fmt: skip
"""Megatron-Core with TransformerEngine: flash attention, fused kernels, distributed optimizer with both overlaps."""

_GENERATIONS = {
    "megatron-deepspeed": _MEGATRON_2021,
    "gpt-neox": _MEGATRON_2021,
    "sailor": _MEGATRON_2021,
    "megatron-lm": _MEGATRON_CORE,
    "megatron-core": _MEGATRON_CORE,
    "megatron-bridge": _MEGATRON_CORE,
    "nemo": _MEGATRON_CORE,
    "mindspeed": replace(_MEGATRON_CORE, generation="mindspeed"),
    "mindformers": replace(_MEGATRON_CORE, generation="mindspeed"),
    "internevo": replace(
        _MEGATRON_CORE, generation="torch", attention="flash2", fused_pointwise=False, host_call_s=CALL_S
    ),
    "paddlenlp": replace(_MEGATRON_CORE, generation="torch", fused_pointwise=False, host_call_s=CALL_S),
    "llm-foundry": replace(TORCH_EAGER, attention="flash1"),
    "torchtitan": TORCH_EAGER,
    "fsdp": TORCH_EAGER,
    "yafsdp": TORCH_EAGER,
    "deepspeed": replace(TORCH_EAGER, generation="deepspeed"),
    "xtuner": replace(TORCH_EAGER, generation="deepspeed"),
    "maxtext": replace(TORCH_EAGER, generation="xla", fused_pointwise=True, host_call_s=0.0),
}

EXPERT_CALL_S = 9e-6
"""Host time per kernel of one expert in TransformerEngine's ``GroupedLinear``: the least that a product takes of 80 to
256 experts on B200, 8.6 to 11 us however few its rows (108 timings in SimuMax,
configs/system/b200_bf16_ceperm.json)."""
_NARROW_KERNELS = 4
"""Kernels per product of one expert in 8 bits: beside the product, those that find the scale and cast (one scale per
tensor), or that cast and put the scales of both operands in order (MXFP8)."""

_DISPATCH_ONCE = {
    "GB200-NVL72": "25.11", "GB300-NVL72": "25.11", "B300-SXM": "26.02", "B200-SXM": "26.04", "H100-80GB-SXM": "26.02",
}  # fmt: skip
"""Release since which Megatron-Bridge's performance recipes of a machine dispatch with DeepEP or HybridEP; before, and
with pipelines where NVLink ends at the node, all-to-all (v0.2.0 to v0.6.0, ``moe_flex_dispatcher_backend``)."""
_RACKS = ("GB200-NVL72", "GB300-NVL72")
_OVERLAP = "25.11"
"""Release since which the recipes for interleaved stages, where NVLink ends at the node, run the exchange beside
another microbatch (``moe_a2a_overlap``)."""
_LAYER_GRAPHS = "25.11"
"""Release since which the same recipes capture router and preparation of the exchange, most also attention, as CUDA
graphs (``cuda_graph_scope``): of the host's work the experts' products are left."""
_WHOLE_STEP_GRAPHS = "26.06"
"""Release since which the recipes for mixtures in MXFP8 capture whole steps as a CUDA graph, fuse activations and casts
into the experts' products, and run the exchange beside another microbatch
(``_enable_hybridep_full_iteration_mxfp8``)."""

ASYNC_TP = 0.4
"""Share of tensor-parallel communication that torch's async-TP hides: Llama-3-8B with tp 8 on H100 goes from 2.81 to
2.56 s in bfloat16 and from 2.42 to 2.21 s in float8, of 0.65 s of communication (torchtitan, June 2025)."""
USERBUFFERS = 1.0
"""The same of TransformerEngine's userbuffers and Ascend's MC2, whose copies need no compute units: all but a slice."""

LOW_PRECISION = {"fp8": "float8_e4m3fn", "mxfp8": "float8_e4m3fn", "nvfp4": "float4_e2m1fn_x2"}


_REDUCES_HALF = {"internevo", "deepspeed", "xtuner", "paddlenlp", "fsdp"}
"""Frameworks whose gradients travel in half precision: DeepSpeed's ``communication_data_type`` and InternEvo follow the
parameters; the bf16 policies of torch's FSDP examples (fms-fsdp's ``bfSixteen``) name it. Megatron reduces its fp32
main gradients, Composer's ``DEFAULT`` policy in fp32."""


def precision_of(case: Case) -> str:
    """Recipe of `costmodels.memory.PRECISIONS` of a run; products of lower precision are `execution_of`'s."""
    if case.precision in ("fp16", "fp32"):
        return case.precision
    halved = case.pure_low_precision or case.framework in _REDUCES_HALF or recipe_of(case).accumulated_bytes == 2
    return "bf16-reduced" if halved else "bf16"


def execution_of(case: Case) -> tuple[Execution, tuple[str, ...]]:
    """How the run was executed, and what was assumed."""
    assumed: list[str] = []
    found = _GENERATIONS.get(case.framework)
    if found is None:
        found = _MEGATRON_CORE if (case.tp or 1) * (case.pp or 1) > 1 else TORCH_EAGER
        alike = "Megatron-Core" if found is _MEGATRON_CORE else "FSDP"
        assumed.append(f"unknown framework {case.framework}: executed like {alike}")
    if case.framework == "megatron-lm" and case.date and case.date < "2023":
        found = _MEGATRON_2021
    if case.flash_attention is not None:
        fused = "vendor" if found.attention == "unfused" else found.attention
        found = replace(found, attention=fused if case.flash_attention else "unfused")
    if case.compiled:
        found = replace(found, generation=f"{found.generation}-compiled", fused_pointwise=True, host_call_s=0.0)
    if "grad_reduce" in case.overlap or "zero" in case.overlap:
        found = replace(found, overlap_gradients=True)
    if "no_grad_reduce" in case.overlap:
        found = replace(found, overlap_gradients=False)
    if "param_gather" in case.overlap or "zero" in case.overlap:
        found = replace(found, overlap_gather=True)
    if "tp" in case.overlap:
        found = replace(found, overlap_tp=ASYNC_TP if case.framework == "torchtitan" else USERBUFFERS)
    if "pp" in case.overlap:
        found = replace(found, overlap_send=True)
    if "ep" in case.overlap:
        found = replace(found, overlap_experts=True)
    if found.generation == _MEGATRON_CORE.generation and (case.vpp or 1) > 1:
        found = replace(found, overlap_send=True)  # ``overlap_p2p_comm``: default where stages are interleaved only
    if case.framework in ("nemo", "megatron-bridge") and (case.machine or "").startswith("dgx"):
        # ``tp_comm_overlap`` of NVIDIA's performance recipes; userbuffers know no MXFP8 or NVFP4
        found = replace(found, overlap_tp=USERBUFFERS if case.precision in ("bf16", "fp8") else found.overlap_tp)
    if case.moe and found.generation == _MEGATRON_CORE.generation:
        found = _with_experts(found, case)
    if case.moe and found.generation == "mindspeed":
        # ``moe-permutation-async-comm`` hides permutations behind the exchange, which itself stays exposed.
        found = replace(found, overlap_experts=False, waits_for_routing=True)
    if case.offload == "activations":
        found = replace(found, offload_activations=True)
    if case.precision in LOW_PRECISION:
        found = replace(found, linear_dtype=LOW_PRECISION[case.precision])
    if case.precision == "fp16":
        found = replace(found, accumulate_bytes=min(found.accumulate_bytes, 6))
    if case.optimizer not in (None, "adam"):
        assumed.append(f"optimizer {case.optimizer}: priced as Adam")
    if case.task is not None and "lora" in case.task:
        assumed.append(f"task {case.task}: priced as if all parameters were trained")
    recipe = recipe_of(case)
    if recipe.accumulated_bytes == 2:
        found = replace(found, accumulate_bytes=min(found.accumulate_bytes, 4))
    return replace(found, recipe=recipe), tuple(assumed)


def _with_experts(found: Execution, case: Case) -> Execution:
    """What Megatron-Core's releases do with experts, by the flags of a row and the recipes of Megatron-Bridge."""
    call_s = EXPERT_CALL_S * (_NARROW_KERNELS if case.precision in LOW_PRECISION else 1)
    found = replace(found, expert_products="each", expert_call_s=call_s, waits_for_routing=True)
    found = replace(found, dispatch_once="deepep" in case.overlap)
    if case.framework != "megatron-bridge":
        return found
    release, rack = case.framework_version or "", case.hardware in _RACKS
    if "tokendrop" in case.model:  # every expert has as many rows as it has room for: nothing to wait for
        found = replace(found, waits_for_routing=False, expert_call_s=0.0)
    if rack or (case.pp or 1) == 1:
        once = release >= _DISPATCH_ONCE.get(case.hardware, "~")
        graphs = release >= _LAYER_GRAPHS
        found = replace(found, dispatch_once=once, host_call_s=0.0 if graphs else found.host_call_s)
    if release >= _WHOLE_STEP_GRAPHS and case.precision == "mxfp8":
        found = replace(found, expert_products="one", fused_experts=True, waits_for_routing=False, host_call_s=0.0)
        return replace(found, overlap_experts=True)
    return replace(found, overlap_experts=release >= _OVERLAP and not rack and (case.vpp or 1) > 1)
