"""Patterns that `planner.validation.normalise` looks for in what sources write, and the codes that they give.

Where the first match counts, order says which.
"""

from __future__ import annotations

from collections.abc import Sequence

Rules = Sequence[tuple[str, str]]
"""(regular expression, code)."""

PRECISIONS: Rules = (
    ("nvfp4", "nvfp4"),
    ("mxfp8|fp8-mx", "mxfp8"),
    ("fp8", "fp8"),
    ("^(bf16|pure bf16|amp_bf16)", "bf16"),
    ("^(fp16|amp)", "fp16"),
    ("^(fp32|tf32)", "fp32"),
)
MEMORY_KINDS: Rules = (
    ("reserved", "reserved"),
    ("allocated|torch peak", "allocated"),
    ("nvidia-smi", "nvidia-smi"),
    ("mem|gib|gb", "unspecified"),
)
SCHEDULES: Rules = (("interleaved", "interleaved"), ("1f1b", "1f1b"), ("gpipe", "gpipe"), ("^none", "none"))
FRAMEWORKS: Rules = (
    ("megatron-bridge", "megatron-bridge"),
    ("mindspeed|modellink", "mindspeed"),
    ("mindformers", "mindformers"),
    ("megascale", "megascale"),
    ("sailor", "sailor"),
    ("primus", "primus"),
    ("x-moe", "x-moe"),
    ("gpt-neox", "gpt-neox"),
    ("megatron-deepspeed", "megatron-deepspeed"),
    ("nemo", "nemo"),
    ("megatron-core|mcore", "megatron-core"),
    ("megatron-lm", "megatron-lm"),
    ("llm foundry|llm-foundry", "llm-foundry"),
    ("torchtitan", "torchtitan"),
    ("internevo", "internevo"),
    ("xtuner", "xtuner"),
    ("yafsdp", "yafsdp"),
    ("paddlenlp", "paddlenlp"),
    ("maxtext", "maxtext"),
    ("nanotron", "nanotron"),
    ("colossalai", "colossalai"),
    ("nnscaler", "nnscaler"),
    ("picotron", "picotron"),
    ("fsdp", "fsdp"),
    ("deepspeed", "deepspeed"),
    ("pytorch", "pytorch"),
)
TASKS: Rules = (("lora", "lora"), ("^pretrain", "pretrain"), ("sft|fine-tune", "sft"))
OPTIMIZERS: Rules = (("adafactor", "adafactor"), ("adam", "adam"), ("muon", "muon"))
OFFLOADS: Rules = (("activation", "activations"), ("optimizer", "optimizer"), ("none", "none"))
MACHINES: Rules = (
    ("jean zay", "jean-zay"),
    ("selene", "selene"),
    ("clariden", "clariden"),
    ("lumi", "lumi"),
    ("frontier", "frontier"),
    ("grand teton", "grand-teton"),
    ("hopper-prod", "hopper-prod"),
    ("dgx-gb300", "dgx-gb300"),
    ("dgx-gb200", "dgx-gb200"),
    ("dgx-b300", "dgx-b300"),
    ("dgx-b200", "dgx-b200"),
    ("dgx-h100", "dgx-h100"),
    ("dgx cloud", "dgx-cloud"),
)
FLOPS: Rules = (
    ("older estimate", "sc21-early"),
    ("sc21|96\\*b|megatron formula", "sc21"),
    ("4\\*l\\*d\\*seq|2 l h s\\^2", "6n-attention"),
    ("kv/heads", "attention-full"),
    ("xtuner", "hardware-causal"),
    ("not stated|not defined", "unknown"),
    ("model", "model"),
)
MFUS: Rules = (("nanogpt|palm", "6n-attention"), ("6 ?\\* ?n|\\*6\\*", "6n"))
OVERLAPS: Rules = (
    ("overlap-grad-reduce|overlap_grad_sync|grad reduce|grad/param|ddp impl torch", "grad_reduce"),
    ("overlap-param-gather|overlap_param_sync|param gather|grad/param", "param_gather"),
    ("ddp impl local", "no_grad_reduce"),
    ("hybrid-zero", "zero"),
    ("ub_tp_comm|tp-comm-overlap|asynctp|mc2|tp overlap|fine_grain_interleave=[2-9]", "tp"),
    ("overlap_p2p|pp overlap", "pp"),
    ("deepep", "deepep"),
    ("moe-permutation-async", "ep"),
)
ROUTINGS: Rules = (("forced.balance|force-balance", "forced-balance"), ("dropless", "dropless"))
MODULES: Rules = (
    ("\\bmoe\\b", "moe"),
    ("moe_act", "moe_act"),
    ("layernorm", "layernorm"),
    ("per.op", "op"),
    ("swap-attention", "attention"),
    ("activation-function", "activation_function"),
)
