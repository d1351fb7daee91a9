"""What sources write in words, as short codes: general rules over the text, none of them for one row.

A rule is a pattern and the code that it gives; where the first match counts, order says which. What brackets hold are
comments of the collector, so they are cut off where a source's own words count. What no rule knows gives None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from planner.validation.clusters import network_of

Precision = Literal["fp32", "bf16", "fp16", "fp8", "mxfp8", "nvfp4"]
MemoryKind = Literal["allocated", "reserved", "nvidia-smi", "unspecified"]
Schedule = Literal["none", "1f1b", "interleaved", "gpipe"]
Sharding = Literal["ddp", "zero", "fsdp", "hsdp"]

_Rules = Sequence[tuple[str, str]]

_PRECISIONS: _Rules = (
    ("nvfp4", "nvfp4"),
    ("mxfp8|fp8-mx", "mxfp8"),
    ("fp8", "fp8"),
    ("^(bf16|pure bf16|amp_bf16)", "bf16"),
    ("^(fp16|amp)", "fp16"),
    ("^(fp32|tf32)", "fp32"),
)
_MEMORY_KINDS: _Rules = (
    ("reserved", "reserved"),
    ("allocated|torch peak", "allocated"),
    ("nvidia-smi", "nvidia-smi"),
    ("mem|gib|gb", "unspecified"),
)
_SCHEDULES: _Rules = (("interleaved", "interleaved"), ("1f1b", "1f1b"), ("gpipe", "gpipe"), ("^none", "none"))
_FRAMEWORKS: _Rules = (
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
_TASKS: _Rules = (("lora", "lora"), ("^pretrain", "pretrain"), ("sft|fine-tune", "sft"))
_OPTIMIZERS: _Rules = (("adafactor", "adafactor"), ("adam", "adam"), ("muon", "muon"))
_OFFLOADS: _Rules = (("activation", "activations"), ("optimizer", "optimizer"), ("none", "none"))
_MACHINES: _Rules = (
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
_FLOPS: _Rules = (
    ("older estimate", "sc21-early"),
    ("sc21|96\\*b|megatron formula", "sc21"),
    ("4\\*l\\*d\\*seq|2 l h s\\^2", "6n-attention"),
    ("kv/heads", "attention-full"),
    ("xtuner", "hardware-causal"),
    ("not stated|not defined", "unknown"),
    ("model", "model"),
)
_MFUS: _Rules = (("nanogpt|palm", "6n-attention"), ("6 ?\\* ?n|\\*6\\*", "6n"))
_OVERLAPS: _Rules = (
    ("overlap-grad-reduce|overlap_grad_sync|grad reduce|grad/param|ddp impl torch", "grad_reduce"),
    ("overlap-param-gather|overlap_param_sync|param gather|grad/param", "param_gather"),
    ("ddp impl local", "no_grad_reduce"),
    ("hybrid-zero", "zero"),
    ("ub_tp_comm|tp-comm-overlap|asynctp|mc2|tp overlap|fine_grain_interleave=[2-9]", "tp"),
    ("overlap_p2p|pp overlap", "pp"),
    ("deepep", "deepep"),
    ("moe-permutation-async", "ep"),
)
_ROUTINGS: _Rules = (("forced.balance|force-balance", "forced-balance"), ("dropless", "dropless"))
_MODULES: _Rules = (
    ("\\bmoe\\b", "moe"),
    ("moe_act", "moe_act"),
    ("layernorm", "layernorm"),
    ("per.op", "op"),
    ("swap-attention", "attention"),
    ("activation-function", "activation_function"),
)


class Recomputation(NamedTuple):
    """Details of what is computed again: number of layers (of a stage), per stage, which modules; and how it is known.

    ``inferred``: the collector took it from elsewhere than the row's source.
    """

    layers: int | None
    stage_layers: tuple[int, ...]
    modules: tuple[str, ...]
    inferred: bool


def precision(text: str | None) -> str | None:
    """``bf16``, ``fp16``, ``fp8``, ``mxfp8``, ``nvfp4`` or ``fp32``; of two in one text the first, or the FP8."""
    return _first(_PRECISIONS, text)


def memory_kind(text: str | None) -> str | None:
    """What a memory figure counts: ``unspecified`` where a source prints a size without saying of what."""
    return _first(_MEMORY_KINDS, text)


def schedule(text: str | None) -> str | None:
    """Pipeline schedule; ``none`` where there is no pipeline."""
    return _first(_SCHEDULES, text)


def task(text: str | None) -> str | None:
    """``pretrain``, ``sft`` or ``lora``."""
    return _first(_TASKS, text)


def optimizer(text: str | None) -> str | None:
    """``adam`` for all of that family, or ``adafactor``, ``muon``."""
    return _first(_OPTIMIZERS, text)


def offload(text: str | None) -> str | None:
    """What is moved to the host's memory, or ``none``."""
    return _first(_OFFLOADS, text)


def machine(text: str | None) -> str | None:
    """A machine that has a name of its own."""
    return _first(_MACHINES, text)


def flops(kind: str | None, definition: str | None) -> str | None:
    """Whose FLOP the TFLOP/s or MFU of a row are: a name that `planner.validation.metrics` knows."""
    return _first(_FLOPS, kind) or _first(_MFUS, definition)


def routing(text: str | None) -> str | None:
    """How tokens were sent to experts: ``forced-balance`` or ``dropless``."""
    return _first(_ROUTINGS, text)


def framework(text: str) -> tuple[str, str | None]:
    """Family and version of the framework; the text itself in lower case where no rule knows it."""
    family = _first(_FRAMEWORKS, text) or text.lower()
    inner = re.search(r"nemo[: ]\s*([\d.]+)", text, re.IGNORECASE)
    found = inner or re.search(r"(?<!TE )\b[vr]?(\d+\.\d+[\w.]*)", text, re.IGNORECASE)
    return family, found[1] if found else None


def overlaps(*texts: str | None) -> tuple[str, ...]:
    """What communication is hidden behind computation, as far as stated; ``no_grad_reduce`` is stated not to be."""
    return _all(_OVERLAPS, " ".join(_plain(text) for text in texts if text))


def context_parallel_kind(*texts: str | None) -> str | None:
    """``ulysses`` (all-to-all) or ``ring``, where stated."""
    text = " ".join(text.lower() for text in texts if text)
    return "ulysses" if re.search("ulysses|cp via all-to-all|cp_comm a2a", text) else "ring" if "ring" in text else None


def sharding(text: str | None, zero_stage: int | None) -> tuple[str | None, int | None]:
    """(kind, devices that share one copy of the state); the second None where that is all of the data-parallel ones."""
    if text is None:
        return ("zero" if zero_stage else "ddp" if zero_stage == 0 else None), None
    if "hsdp" in text.lower():
        kind = "hsdp"
    elif "FSDP" in text and not re.search("FSDP(=0| no)", text):
        kind = "fsdp"
    else:
        kind = "zero" if zero_stage else "ddp"
    size = re.search(r"(?:over |within |group |FSDP |zero[12]\(dp)(\d+)", text)
    return kind, int(size[1]) if size else None


def interconnect(hardware: str, *texts: str | None) -> str | None:
    """The network between nodes in words that `planner.validation.clusters.network_of` reads as it reads ``texts``."""
    found = network_of(hardware, *texts)
    if found is None:
        return None
    cards = f"{found.count}x" if found.count else ""
    each = "" if found.per == "card" else f" per {found.per}"
    return f"{cards}{found.gbit_per_s:g} Gb/s{each}{' (from memory)' if found.recalled else ''}"


def recomputation(text: str | None) -> Recomputation:
    """Details of a recomputation policy, see `Recomputation`."""
    if text is None:
        return Recomputation(None, (), (), inferred=False)
    layers = re.search(r"num-ckpt-layers = (\d+)|method=block num_layers=(\d+)", text)
    stages = re.search(r'recompute": \[([\d, ]+)\]', text)
    return Recomputation(
        layers=next(int(group) for group in layers.groups() if group) if layers else None,
        stage_layers=_numbers(stages[1]) if stages else (),
        modules=_all(_MODULES, text.lower()),
        inferred=text.startswith("inferred"),
    )


def stage_layers(*texts: str | None) -> tuple[int, ...]:
    """Layers of each pipeline stage, where they are listed."""
    for text in filter(None, texts):
        if found := re.search(r"num-layer-list ([\d,]+)|layers per stage: \[([\d, ]+)\]", text):
            return _numbers(found[1] or found[2])
    return ()


def out_of_memory(*texts: str | None) -> bool:
    """Whether the run did not fit: the words for it stand in one of the texts."""
    return any(re.search(r"\bOOM\b|out of memory", text) for text in texts if text)


def compiled(*texts: str | None) -> bool | None:
    """Whether torch.compile fused the operations, where stated."""
    text = " ".join(filter(None, texts))
    return True if "torch.compile" in text else False if re.search(r"\beager\b", text) else None


def citation(text: str | None) -> str | None:
    """Where a figure stands, without remarks on where a copy of the source was found."""
    if text is None:
        return None
    return re.sub(r"[\s,/]*(\([^)]*\bindex\b[^)]*\)|\bstored (blog|text)( id \d+)?)", "", text).strip() or None


def _first(rules: _Rules, text: str | None) -> str | None:
    """Code of the first rule that matches, case aside."""
    found = (code for pattern, code in rules if text and re.search(pattern, text.strip(), re.IGNORECASE))
    return next(found, None)


def _all(rules: _Rules, text: str) -> tuple[str, ...]:
    """Codes of all rules that match, case aside, in alphabetical order."""
    return tuple(sorted({code for pattern, code in rules if re.search(pattern, text, re.IGNORECASE)}))


def _plain(text: str) -> str:
    return re.sub(r"\([^)]*\)", "", text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
