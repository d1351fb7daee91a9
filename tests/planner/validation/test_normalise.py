from __future__ import annotations

from typing import Any

import pytest

from planner.validation import normalise


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, None),
        ("bf16 mixed (not stated)", "bf16"),
        ('fp16 (bf16 not yet; earlier "fp16" section)', "fp16"),
        ("fp16/bf16 mixed", "fp16"),
        ("bf16/fp16 not stated", "bf16"),
        ("bf16+fp8", "fp8"),
        ("FP8 (not in table; H100: fp8; parenthesised = other granularity)", "fp8"),
        ("amp_fp8", "fp8"),
        ("FP8-MX", "mxfp8"),
        ("MXFP8", "mxfp8"),
        ("NVFP4", "nvfp4"),
        ("int3", None),
    ],
)
def test_precision(text: str | None, code: str | None) -> None:
    assert normalise.precision(text) == code


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Megatron-Bridge (NeMo 26.04.01)", ("megatron-bridge", "26.04.01")),
        ("Megatron-Bridge 0.1.0rc4 (nemo:25.09)", ("megatron-bridge", "25.09")),
        ("NeMo 24.07 / Megatron-Core", ("nemo", "24.07")),
        ("Megatron-Core r0.8.0", ("megatron-core", "0.8.0")),
        ("Megatron-LM 23e00ed + TE 2.11", ("megatron-lm", None)),
        ("MindSpeed-LLM/ModelLink v1.0.RC3.0", ("mindspeed", "1.0.RC3.0")),
        ("Sailor = modified Megatron-DeepSpeed", ("sailor", None)),
        ("Composer/LLM Foundry + PyTorch FSDP", ("llm-foundry", None)),
        ("YaFSDP", ("yafsdp", None)),
        ("PyTorch FSDP + torch.compile", ("fsdp", None)),
        ("Something New 3.1", ("something new 3.1", "3.1")),
    ],
)
def test_framework(text: str, found: tuple[str, str | None]) -> None:
    assert normalise.framework(text) == found


@pytest.mark.parametrize(
    ("text", "zero_stage", "found"),
    [
        (None, None, (None, None)),
        (None, 0, ("ddp", None)),
        (None, 1, ("zero", None)),
        ("FSDP=0: DDP + distributed optimizer", 1, ("zero", None)),
        ("ZeRO-1 within 8-GPU node", 1, ("zero", 8)),
        ("ZeRO-1 over 4 ranks inside a node", 1, ("zero", 4)),
        ("ZeRO-1 over all DP ranks", 1, ("zero", None)),
        ("FSDP sharding group 64", 3, ("fsdp", 64)),
        ("FSDP2 FULL_SHARD over 8 (fsdp 4 x cp 2); local batch 1 per FSDP rank", 3, ("fsdp", 8)),
        ("FSDP FULL_SHARD, mixed_precision PURE, precision bf16", 3, ("fsdp", None)),
        ("FSDP 8", 3, ("fsdp", 8)),
        ("HSDP", 3, ("hsdp", None)),
        ("FSDP no", 1, ("zero", None)),
        ("zero1(dp2)+tp2+pp4, batch size per DP 128", 1, ("zero", 2)),
    ],
)
def test_sharding(text: str | None, zero_stage: int | None, found: tuple[Any, Any]) -> None:
    assert normalise.sharding(text, zero_stage) == found


@pytest.mark.parametrize(
    ("texts", "codes"),
    [
        (("DDP impl local (torch = overlapped grad all-reduce; local = not overlapped)",), ("no_grad_reduce",)),
        (("DDP impl torch (torch = overlapped grad all-reduce; local = not overlapped)",), ("grad_reduce",)),
        (("ub_tp_comm_overlap, overlap_p2p, grad/param overlap",), ("grad_reduce", "param_gather", "pp", "tp")),
        ((None, "distributed optimizer, overlap_grad_sync+overlap_param_sync"), ("grad_reduce", "param_gather")),
        (("AsyncTP",), ("tp",)),
        (("overlap-grad-reduce, use-mc2",), ("grad_reduce", "tp")),
        (("micro_batch_interleave_num=1, fine_grain_interleave=None",), ()),
        (("micro_batch_interleave_num=1, fine_grain_interleave=2",), ("tp",)),
        (("hybrid-zero comm overlap",), ("zero",)),
        ((None,), ()),
    ],
)
def test_overlaps(texts: tuple[str | None, ...], codes: tuple[str, ...]) -> None:
    assert normalise.overlaps(*texts) == codes


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, (None, (), (), False)),
        ("granularity=full method=block num_layers=70 num-layer-list 5,6,6", (70, (), (), False)),
        ("num-ckpt-layers = 10", (10, (), (), False)),
        ('{"recompute": [6, 3, 2, 3], "select_recompute": false}', (None, (6, 3, 2, 3), (), False)),
        ("inferred: recipes of a later release (layernorm+moe_act)", (None, (), ("layernorm", "moe_act"), True)),
        ("moe + layernorm", (None, (), ("layernorm", "moe"), False)),
        ("selective activation checkpointing (per-op SAC policy)", (None, (), ("op",), False)),
    ],
)
def test_recomputation(text: str | None, found: tuple[Any, ...]) -> None:
    assert normalise.recomputation(text) == found


def test_stage_layers_memory_and_the_rest() -> None:
    assert normalise.stage_layers("granularity=full num-layer-list 5,6,5", None) == (5, 6, 5)
    assert normalise.stage_layers(None, "layers per stage: [12, 14]; gradient reduction 0.05 s") == (12, 14)
    assert normalise.stage_layers(None, None) == ()
    assert normalise.memory_kind("max over GPUs of torch peak memory (reserved), GiB") == "reserved"
    assert normalise.memory_kind("max allocated GiB (torch peak allocated over ranks)") == "allocated"
    assert normalise.memory_kind("mem column used/total GiB (nvidia-smi style)") == "nvidia-smi"
    assert normalise.memory_kind('peak GPU memory, "GB" as printed') == "unspecified"
    assert normalise.out_of_memory("OOM outcome (memory negative)", None)
    assert normalise.out_of_memory(None, "out of memory: a feasibility label")
    assert not normalise.out_of_memory("rows of BLOOM, ROOMY", None)
    assert normalise.compiled("torchtitan", "Table 1; torch.compile") is True
    assert normalise.compiled("torchtitan", "Table 1; eager") is False
    assert normalise.compiled("torchtitan", None) is None
    assert normalise.context_parallel_kind("sequence_parallel_size (Ulysses-style all-to-all) = 8", None) == "ulysses"
    assert normalise.context_parallel_kind(None, "overlap-grad-reduce") is None
    assert normalise.schedule("1F1B (DeepSpeed PipelineEngine)") == "1f1b"
    assert normalise.schedule("interleaved 1F1B") == "interleaved"
    assert normalise.schedule("none (gradient accumulation)") == "none"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NVLink3 intra; 4x Omni-Path (100 Gb/s each) per node inter", "4x100 Gb/s per node"),
        ("NVLink intra, 400 Gb/s RDMA per GPU inter", "400 Gb/s per device"),
        ("InfiniBand 200 Gb/s (as printed)", "200 Gb/s"),
        ("8x200Gb/s HDR IB inter (from memory)", "8x200 Gb/s per node (from memory)"),
        ("not stated", None),
    ],
)
def test_interconnect_is_read_as_the_words_that_it_stands_for(text: str, words: str | None) -> None:
    assert normalise.interconnect("A100-80GB-SXM", None, text) == words
    assert normalise.interconnect("A100-80GB-SXM", words) == words


def test_citations_lose_remarks_on_copies() -> None:
    assert normalise.citation("A README (public, name not shown by the index)") == "A README"
    assert normalise.citation("README / stored blog id 14981783043") == "README"
    assert normalise.citation("stored text id 4426859803") is None
    assert normalise.citation("docs/table.md") == "docs/table.md"
