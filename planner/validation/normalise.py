"""What sources write in words, as short codes: general rules over the text, none of them for one row.

A rule is a pattern and the code that it gives (`planner.validation.normalise_rules`). What brackets hold are comments
of the collector, so they are cut off where a source's own words count. What no rule knows gives None.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from planner.validation import normalise_rules as rules
from planner.validation.clusters import network_of


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
    return _first(rules.PRECISIONS, text)


def memory_kind(text: str | None) -> str | None:
    """What a memory figure counts: ``unspecified`` where a source prints a size without saying of what."""
    return _first(rules.MEMORY_KINDS, text)


def schedule(text: str | None) -> str | None:
    """Pipeline schedule; ``none`` where there is no pipeline."""
    return _first(rules.SCHEDULES, text)


def task(text: str | None) -> str | None:
    """``pretrain``, ``sft`` or ``lora``."""
    return _first(rules.TASKS, text)


def optimizer(text: str | None) -> str | None:
    """``adam`` for all of that family, or ``adafactor``, ``muon``."""
    return _first(rules.OPTIMIZERS, text)


def offload(text: str | None) -> str | None:
    """What is moved to the host's memory, or ``none``."""
    return _first(rules.OFFLOADS, text)


def machine(text: str | None) -> str | None:
    """A machine that has a name of its own."""
    return _first(rules.MACHINES, text)


def flops(kind: str | None, definition: str | None) -> str | None:
    """Whose FLOP the TFLOP/s or MFU of a row are: a name that `planner.validation.metrics` knows."""
    return _first(rules.FLOPS, kind) or _first(rules.MFUS, definition)


def routing(text: str | None) -> str | None:
    """How tokens were sent to experts: ``forced-balance`` or ``dropless``."""
    return _first(rules.ROUTINGS, text)


def framework(text: str) -> tuple[str, str | None]:
    """Family and version of the framework; the text itself in lower case where no rule knows it."""
    family = _first(rules.FRAMEWORKS, text) or text.lower()
    inner = re.search(r"nemo[: ]\s*([\d.]+)", text, re.IGNORECASE)
    found = inner or re.search(r"(?<!TE )\b[vr]?(\d+\.\d+[\w.]*)", text, re.IGNORECASE)
    return family, found[1] if found else None


def overlaps(*texts: str | None) -> tuple[str, ...]:
    """What communication is hidden behind computation, as far as stated; ``no_grad_reduce`` is stated not to be."""
    return _all(rules.OVERLAPS, " ".join(_plain(text) for text in texts if text))


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
        modules=_all(rules.MODULES, text.lower()),
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


def _first(table: rules.Rules, text: str | None) -> str | None:
    """Code of the first rule that matches, case aside."""
    found = (code for pattern, code in table if text and re.search(pattern, text.strip(), re.IGNORECASE))
    return next(found, None)


def _all(table: rules.Rules, text: str) -> tuple[str, ...]:
    """Codes of all rules that match, case aside, in alphabetical order."""
    return tuple(sorted({code for pattern, code in table if re.search(pattern, text, re.IGNORECASE)}))


def _plain(text: str) -> str:
    return re.sub(r"\([^)]*\)", "", text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
