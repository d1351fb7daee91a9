"""What a row measured: seconds per step from whichever figure it gives, and seconds as the figures that sources print.

TFLOP/s and MFU differ by whose FLOP are counted (up to a third), so each definition is a formula of its own here. B:
sequences per step, s: tokens of one, L: layers, h: hidden size, a: heads, k: heads of keys and values, d: size of a
head, f: width of the MLP (of all experts that a token visits), V: vocabulary, N: parameters (active ones), g: 3 for
gated MLPs and 2 for others. FLOP are of one optimizer step of all devices; a multiply-add counts two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from costmodels.units import GIGA, TERA
from planner.validation.cases import MEASURED, Case

_RECOMPUTED = 4 / 3
"""Forward, forward again and backward over forward and backward."""

UNITS: Mapping[str, str] = MappingProxyType(
    {
        "step_time_s": "s",
        "tokens_per_s_per_gpu": "tokens/s/device",
        "tokens_per_s": "tokens/s",
        "samples_per_s": "samples/s",
        "tflops_per_gpu": "TFLOP/s/device",
        "mfu": "MFU",
        "hfu": "HFU",
    }
)


def measured_step_s(case: Case) -> float | None:
    """Seconds per step: as stated, else from the first other figure of `MEASURED` that can be converted."""
    seconds = (step_s_of(case, name) for name in MEASURED)
    return next((found for found in seconds if found is not None), None)


def step_s_of(case: Case, name: str) -> float | None:
    """Seconds per step that one measured figure stands for; None where it, or what it takes to convert it, is open."""
    value = getattr(case, name)
    if value is None or value <= 0:
        return None
    if name == "step_time_s":
        return float(value)
    at_one_second = metric_at(case, name, 1.0)
    return None if at_one_second is None else at_one_second / value


def metric_at(case: Case, name: str, step_s: float) -> float | None:
    """A figure of `MEASURED` for a step of ``step_s`` seconds, as the row's source defines it; None: open."""
    if name == "step_time_s":
        return step_s
    if name == "samples_per_s":
        return None if case.global_batch is None else case.global_batch / step_s
    tokens = _product(case, "global_batch", "seq_len")
    if name == "tokens_per_s":
        return None if tokens is None else tokens / step_s
    if case.gpus is None:
        return None
    if name == "tokens_per_s_per_gpu":
        return None if tokens is None else tokens / step_s / case.gpus
    flop = step_flop(case, {"mfu": False, "hfu": True}.get(name))
    if flop is None:
        return None
    tflop_per_s = flop / step_s / case.gpus / TERA
    if name == "tflops_per_gpu":
        return tflop_per_s
    return None if case.peak_tflops_assumed is None else tflop_per_s / case.peak_tflops_assumed


def step_flop(case: Case, recomputed: bool | None = None) -> float | None:
    """FLOP of a step by the row's definition; with or without what is computed again, None: as the definition has it.

    None for a definition that nobody states, or a shape that is open.
    """
    definition = DEFINITIONS.get(case.flops_kind or "")
    flop = definition(case) if definition else None
    if flop is None or case.recompute != "full":
        return flop
    counted = case.flops_kind in COUNT_RECOMPUTED
    return flop * _RECOMPUTED ** ((counted if recomputed is None else recomputed) - counted)


def sc21(case: Case) -> float | None:
    """``96 B s L h^2 (1 + s/6h + V/16Lh)``; where nothing is computed again ``72 B s L h^2 (1 + s/6h + V/12Lh)``.

    Full attention, MLP of 4h, recomputation of the layers counted. Source: arXiv 2104.04473, section 5.1.
    """
    layers, logits = sc21_early(case), _product(case, "global_batch", "seq_len", "hidden", "vocab")
    if layers is None or logits is None or case.seq_len is None or case.hidden is None:
        return None
    return layers * (1 + case.seq_len / (6 * case.hidden)) + 6 * logits


def sc21_early(case: Case) -> float | None:
    """``96 B s L h^2``, with 72 where nothing is computed again: without attention and vocabulary.

    Source: BigScience's chronicles before 21 February 2022, which print 2 to 4 % less than `sc21` gives.
    """
    factor = 96 if case.recompute == "full" else 72
    product = _product(case, "global_batch", "seq_len", "layers", "hidden", "hidden")
    return None if product is None else factor * product


def six_n(case: Case) -> float | None:
    """``6 N B s``: no attention. Source: FlagPerf, whose N is the round figure of the model's name."""
    tokens, parameters = _product(case, "global_batch", "seq_len"), case.active_params_b or case.params_b
    return None if tokens is None or parameters is None else 6 * GIGA * parameters * tokens


def six_n_attention(case: Case) -> float | None:
    """``3 B (2 N s + 4 L h s^2)``: full attention, nothing computed again. Source: llm-foundry's benchmarks, README."""
    linear = six_n(case)
    attention = _product(case, "global_batch", "layers", "hidden", "seq_len", "seq_len")
    return None if linear is None or attention is None else linear + 12 * attention


def attention_full(case: Case) -> float | None:
    """``B s (12 L h^2 (1 + k/a + s/h) + 6 g L f h + 6 V h)``; k is a where the MLP has no gate.

    Full attention, nothing computed again. Source: READMEs of NVIDIA's dgxc-benchmarking, whose formula for Nemotron-4
    has keys and values as wide as queries.
    """
    return _counted(case, attention=1.0, all_heads=not case.gated_mlp)


def causal(case: Case) -> float | None:
    """``6 B s L (2 h a d (1 + k/a) + a d s + g f h) + 6 B s V h``: attention counted half, nothing computed again.

    Source: ``num_floating_point_operations`` of Megatron-LM, which Megatron-Bridge prints. NeMo counted attention in
    full until 2024.
    """
    full = case.framework == "nemo" and (case.framework_version or "") < "25"
    return _counted(case, attention=1.0 if full else 0.5)


def hardware_causal(case: Case) -> float | None:
    """`causal`, and with full recomputation four thirds of it. Source: XTuner's throughput hook, as rows suggest."""
    flop = causal(case)
    return None if flop is None else flop * (_RECOMPUTED if case.recompute == "full" else 1)


DEFINITIONS: Mapping[str, Callable[[Case], float | None]] = MappingProxyType(
    {
        "sc21": sc21,
        "sc21-early": sc21_early,
        "6n": six_n,
        "6n-attention": six_n_attention,
        "attention-full": attention_full,
        "model": causal,
        "hardware-causal": hardware_causal,
    }
)
"""By `Case.flops_kind`."""

COUNT_RECOMPUTED = ("sc21", "sc21-early", "hardware-causal")
"""Definitions that count what is computed again."""


def _counted(case: Case, *, attention: float, all_heads: bool = False) -> float | None:
    """FLOP of a transformer, counted by its products; ``attention`` is the share of the scores that counts."""
    tokens = _product(case, "global_batch", "seq_len")
    hidden, heads, kv_heads = case.hidden, case.heads, case.heads if all_heads else case.kv_heads
    layers, length, vocab = case.layers, case.seq_len, case.vocab
    if case.moe:
        width = None if case.moe_ffn is None or case.topk is None else case.moe_ffn * case.topk
        width = None if width is None else width + (case.shared_expert_ffn or 0)
    else:
        width = case.ffn
    if tokens is None or not hidden or not heads or not kv_heads or not layers or not length or not vocab or not width:
        return None
    queries = heads * (case.head_dim or hidden / heads)
    projections = 2 * hidden * queries * (1 + kv_heads / heads)
    scores = 2 * attention * queries * length
    mlp = (3 if case.gated_mlp else 2) * width * hidden
    return 6 * tokens * (layers * (projections + scores + mlp) + vocab * hidden)


def _product(case: Case, *names: str) -> float | None:
    values = [getattr(case, name) for name in names]
    return None if None in values else float(math.prod(values))
