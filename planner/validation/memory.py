"""What the frameworks of published runs keep in memory, and what their memory counters count.

Three counters differ. ``allocated`` is what torch's allocator has given out, the sum of the tensors. ``reserved`` adds
the blocks that the allocator holds for reuse and could not fit tensors into. The driver (``nvidia-smi``) adds what is
not torch's at all: contexts, kernels, buffers of communicators. A source that prints a size without a word on what it
counts has it from the driver's tool: that is where a framework-neutral table gets it.

    reserved = allocated (1 + cached)
    driver   = reserved + outside

The allocator returns unused blocks before it fails, so a counter never shows more than the device has, and a run fits
as long as its tensors, what cannot be used between them, and the contexts fit: `least_driver_bytes`.
"""

from __future__ import annotations

from dataclasses import replace

from costmodels.memory import Recipe
from costmodels.units import GIB, GIGA
from planner.validation.cases import Case

CACHED_SHARE = 0.12
"""Blocks held for reuse, per byte allocated, of torch's caching allocator. Over the driver's and torch's own counts of
Megatron-Core, Megatron-Bridge, torchtitan, Sailor and PaddleNLP runs (63 rows of four sources)."""

DEEPSPEED_CACHED_SHARE = 0.25
"""The same under DeepSpeed, whose flat buffers leave the memory of the tensors they replace in pieces: BLOOM's and
FlagPerf's runs (81 rows of two sources). LUMI's logs, which print both counters of 40 stages, have 0.20 to 0.48."""

UNUSABLE_SHARE = 0.02
"""Per byte allocated, what lies between tensors and fits none of them when the cache has been returned. Fitted to what
ran and what ran out of memory: less than 1.9 % lets Qwen3-8B at 16k tokens fit, more than 2.1 % leaves out MindSpeed's
4x16B, so that rows near the limit say little."""

CONTEXT_BYTES = int(1.5 * GIB)
"""A process's context with its kernels: 1.24 GiB on V100, 1.54 on A100 (BigScience's chronicles of tr11, "104B topology
/ memory usage" and "Possible topologies for 200B")."""

COMMUNICATOR_BYTES = int(0.9 * GIB)
"""Buffers of one communicator, and what libraries keep for it. Sailor's 350M model on GH200 (15 rows) and Qwen3's on
H100 (10 rows) take 4.2 GiB beside torch's memory however small the model: a context and three of these."""

HCCL_COMMUNICATOR_BYTES = int(0.4 * GIB)
"""The same on Ascend: two buffers of ``HCCL_BUFFSIZE``, 200 MB unless set (CANN's environment variables)."""

_MEGATRON_GROUPS = 3
"""Communicators that Megatron's kind sets up whatever the layout: of data, of model parallel ranks, of the world."""

_PIPELINE_DEEPSPEED = ("megatron-deepspeed", "gpt-neox")

_ONE_GROUP = ("torchtitan", "fsdp", "llm-foundry", "yafsdp", "pytorch")
"""Frameworks that shard over one group of devices."""

_LOGITS_COPIED = 10
"""Megatron's vocabulary-parallel loss: logits in half precision, their fp32 copy, and its exponentials
(``tensor_parallel/cross_entropy.py`` before it subtracted in place)."""
_LOGITS_IN_PLACE = 6
"""The same since 2025, and Megatron-Bridge's default fused loss: everything in one fp32 copy of the logits."""
_LOGITS_FUSED = 4
"""A fused loss writes the logits' gradient without an fp32 copy: flash-attn's in LLM Foundry (its default ``loss_fn``),
torch.compile's in torchtitan since 2025, TransformerEngine's in Megatron-Bridge's performance scripts
(``cross_entropy_fusion_impl``)."""

_ZERO3_BUFFERS = round(2 * 1.5 * GIGA)
"""DeepSpeed's defaults in half precision: ``stage3_max_live_parameters`` gathered and one ``reduce_bucket_size``."""


_MEGATRON_CORE = Recipe(regather=True, narrow_inputs=True, native_groups=True, sent_outputs_freed=True)
"""Megatron-Core with TransformerEngine."""


def recipe_of(case: Case) -> Recipe:
    """What the run's framework keeps otherwise than torch's ``fully_shard``."""
    recent = (case.date or "") >= "2025"
    megatron_logits = _LOGITS_IN_PLACE if recent else _LOGITS_COPIED
    match case.framework:
        case "megatron-deepspeed" | "gpt-neox" if (case.pp or 1) > 1:
            # BF16_Optimizer adds up in fp32 what a backward pass leaves in bf16.
            return Recipe(passing_bytes=2 if case.precision == "bf16" else 0, logit_bytes=_LOGITS_COPIED)
        case "megatron-deepspeed" | "gpt-neox":
            # Without pipeline ZeRO adds up in the model's precision (engine.py, `get_data_types`).
            return Recipe(accumulated_bytes=2, logit_bytes=_LOGITS_COPIED)
        case "sailor":
            return Recipe(logit_bytes=_LOGITS_COPIED)
        case "deepspeed":
            buffers = _ZERO3_BUFFERS if case.zero_stage == 3 else 0
            return Recipe(accumulated_bytes=2, upcast_norms=True, buffer_bytes=buffers)
        case "llm-foundry":
            return Recipe(logit_bytes=_LOGITS_FUSED)
        case "torchtitan":
            return Recipe(logit_bytes=_LOGITS_FUSED if case.compiled and recent else None)
        case "internevo":
            # HybridZeroOptimizer reduces gradients of bf16 parameters as they are.
            return Recipe(accumulated_bytes=2)
        case "mindformers":
            # MindSpore hands the optimizer gradients in the parameters' precision.
            return replace(_MEGATRON_CORE, accumulated_bytes=2, logit_bytes=_LOGITS_COPIED)
        case "nemo":
            # `grad_sync_dtype: bf16` in all recipes of NeMo's launcher.
            return replace(_MEGATRON_CORE, accumulated_bytes=2, logit_bytes=megatron_logits)
        case "megatron-bridge" if _is_benchmark(case):
            # perf_recipes/_common.py: `grad_reduce_in_fp32 = False`.
            return replace(_MEGATRON_CORE, accumulated_bytes=2, logit_bytes=_LOGITS_FUSED)
        case "megatron-bridge":
            return replace(_MEGATRON_CORE, logit_bytes=_LOGITS_IN_PLACE)
        case "megatron-lm" | "megatron-core" | "mindspeed":
            return replace(_MEGATRON_CORE, logit_bytes=megatron_logits)
        case _:
            return Recipe()


def _is_benchmark(case: Case) -> bool:
    """Whether a figure is the framework's own, measured with its performance scripts."""
    return "Megatron-Bridge" in (case.repo or "")


def default_zero_stage(case: Case) -> int:
    """What shards the state where a source does not say: ``fully_shard``'s 3; 1 for DeepSpeed's ``BF16_Optimizer``,
    which shards whatever ``--zero-stage`` says, and for NeMo, whose recipes have a distributed optimizer."""
    if case.sharding in ("fsdp", "hsdp"):
        return 3
    return int(case.framework == "nemo" or (case.framework in _PIPELINE_DEEPSPEED and case.precision == "bf16"))


def fills_first_stages(case: Case) -> bool:
    """Whether layers that do not divide evenly are missing on the last pipeline stage: DeepSpeed's partitions
    (BigScience's chronicles of tr11: "78/12=6.5 - so the last stage has 1 block, while the rest have 7"), unless
    embeddings count as layers."""
    return case.framework in _PIPELINE_DEEPSPEED and not case.embedding_stages


def outside_bytes(case: Case) -> int:
    """What a device holds beside torch's memory."""
    groups = 1 if case.framework in _ONE_GROUP else _MEGATRON_GROUPS
    each = HCCL_COMMUNICATOR_BYTES if case.hardware.startswith("Ascend") else COMMUNICATOR_BYTES
    return CONTEXT_BYTES + groups * each


def least_driver_bytes(case: Case, allocated_bytes: float) -> int:
    """What a device must have for a run whose tensors take this much at their peak."""
    return int(allocated_bytes * (1 + UNUSABLE_SHARE)) + outside_bytes(case)


def counter_bytes(case: Case, allocated_bytes: float, capacity_bytes: float) -> int:
    """What the row's counter shows of a run whose tensors take this much at their peak (module docstring)."""
    if case.memory_kind == "allocated":
        return int(allocated_bytes)
    deepspeed = case.framework == "deepspeed" or case.framework in _PIPELINE_DEEPSPEED
    reserved = allocated_bytes * (1 + (DEEPSPEED_CACHED_SHARE if deepspeed else CACHED_SHARE))
    outside = outside_bytes(case)
    if case.memory_kind == "reserved":
        return int(max(allocated_bytes, min(reserved, capacity_bytes - outside)))
    return int(max(allocated_bytes, min(reserved + outside, capacity_bytes)))
