"""Plans that train on gloo processes, against the same model in one process.

The parent traces models, lays plans out and trains the single-process models before it forks: on two cores that takes
longer than training on every rank does.
"""

from __future__ import annotations

import copy
import json
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from hardware_profiles.load import load_cluster
from planner.capture.program import ModelProgram, capture_program
from planner.capture.sources import load_model
from planner.plan import Plan
from planner.runtime.boxes import Boxes
from planner.runtime.checkpoint import _experts
from planner.runtime.parallelize import parallelize
from planner.solvers.block_layout.planned import PlacedBlocks, placed_blocks
from planner.solvers.setting import Setting
from tests.planner.runtime.gloo import run_ranks
from tests.planner.runtime.plans import captured, plan_of
from tests.planner.runtime.small import Small, small

STEPS = 3
LOSS, GRADIENT = 1e-5, 1e-4
"""Allowed: absolute, and relative to the largest gradient of the single-process model."""

MAX_NORM = 0.5
"""Gradients are clipped to it, below what the models have: a wrong norm shows in the next step too."""

HF: dict[str, dict[str, Any]] = {
    "hf llama": {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    },
    "hf gpt2": {
        "model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_head": 4, "n_positions": 64,
        "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    },
    "hf qwen3": {
        "model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    },
    "hf mixtral": {
        "model_type": "mixtral", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
        "max_position_embeddings": 64,
    },
}  # fmt: skip

FIXED = ("thirds", "resnet", "vit")
"""Families of as many blocks as they have."""

MICROBATCH = {"resnet": 16}
"""Samples; batch norm over few of them magnifies what float32 rounds."""


@dataclass(frozen=True)
class Case:
    """A model under a plan."""

    family: str
    changes: Mapping[str, Any]
    """Of the plan: `tests.planner.runtime.plans.plan_of`, and ``experts``."""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    """Of the model, where they are not `small`'s."""

    @property
    def key(self) -> str:
        """Of the model."""
        blocks = self.changes.get("pp", 1) * self.changes.get("num_chunks", 1)
        layers = {} if self.family in FIXED else {"num_layers": max(2, blocks)}
        return json.dumps([self.family, layers | dict(self.sizes)], sort_keys=True)

    @property
    def plan(self) -> Plan:
        changes = {"microbatch_size": MICROBATCH.get(self.family, 2), **self.changes}
        if changes.get("dp_shard", 1) * changes.get("cp", 1) > 1:
            changes.setdefault("zero_stage", 3)
        experts = changes.pop("experts", ())
        program = _program(self.key, changes["microbatch_size"], _dtype(changes.get("precision", "fp32")))
        made = plan_of(program.graph, seq_len=_subject(self.key).seq_len, **changes)
        return replace(made, experts=tuple(experts))

    def __str__(self) -> str:
        said = ", ".join(f"{k}={v}" for k, v in {**self.sizes, **self.changes}.items())
        return f"{self.family}: {said}"


def _dtype(precision: str) -> torch.dtype:
    return torch.float32 if precision == "fp32" else torch.bfloat16


@cache
def _subject(key: str) -> Small:
    family, sizes = json.loads(key)
    return _hf(family, **sizes) if family in HF else small(family, **sizes)


def _hf(family: str, num_layers: int) -> Small:
    fields = HF[family] | {"n_layer" if "n_embd" in HF[family] else "num_hidden_layers": num_layers}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(fields))
        source = load_model(f"hf:{name}", dtype=torch.float32)
    torch.manual_seed(0)
    model = type(source.module)(source.module.config)
    assert callable(source.inputs)
    return Small(model.train(), source.inputs, 8)


@cache
def _program(key: str, microbatch_size: int, dtype: torch.dtype) -> ModelProgram:
    subject = _subject(key)
    model = copy.deepcopy(subject.model).to(dtype)
    return capture_program(model, subject.inputs, batch=microbatch_size, seq_len=subject.seq_len, dtype=dtype)


_placed: dict[Any, PlacedBlocks] = {}


def _layouts(case: Case) -> PlacedBlocks:
    """Of the plan's operations: they depend on the axes inside of a sample only."""
    plan = case.plan
    c = plan.candidate
    inside = (c.microbatch_size, c.cp, c.tp, c.sequence_parallel, c.context, c.ulysses, c.ep)
    key = (case.key, inside, c.dp_shard if c.ep > 1 else 0, plan.inputs.job.precision)
    if key not in _placed:
        program = _program(case.key, c.microbatch_size, _dtype(plan.inputs.job.precision))
        cluster = load_cluster(plan.inputs.hardware)
        _placed[key] = placed_blocks(Setting(program.graph, cluster, plan.inputs.job), plan)
    return _placed[key]


@dataclass(frozen=True)
class Whole:
    """What the single-process model does in its steps."""

    losses: list[float]
    norms: list[float]
    gradients: list[dict[str, Tensor]]


@cache
def _whole(key: str, samples: int, microbatch_size: int) -> Whole:
    """Microbatch by microbatch, for batch norm and balance losses see one at a time."""
    subject = _subject(key)
    model = copy.deepcopy(subject.model)
    optimizer = _optimizer(model)
    found = Whole([], [], [])
    for step in range(STEPS):
        optimizer.zero_grad()
        batches = [_cut(subject, step, samples, at, microbatch_size) for at in range(0, samples, microbatch_size)]
        total = 0.0
        for batch in batches:
            loss = _loss(model, batch) / len(batches)
            loss.backward()
            total += loss.item()
        found.losses.append(total)
        found.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        found.norms.append(nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item())
        optimizer.step()
    return found


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-5)


def _cut(subject: Small, step: int, samples: int, at: int, size: int) -> Any:
    return {k: t[at : at + size] for k, t in _batch(subject, samples, step).items()}


def _batch(subject: Small, samples: int, step: int) -> dict[Any, Tensor]:
    """Tensors by name or position."""
    like = subject.inputs(2, subject.seq_len)
    names = list(like) if isinstance(like, dict) else list(range(len(like)))
    plain = Small(subject.model, lambda b, s: tuple(_values(subject.inputs(b, s))), subject.seq_len)
    return dict(zip(names, plain.batch(samples, seed=step), strict=True))


def _values(inputs: Any) -> Sequence[Tensor]:
    return list(inputs.values()) if isinstance(inputs, dict) else inputs


def _loss(model: nn.Module, batch: Mapping[Any, Tensor]) -> Tensor:
    made = model(*batch.values()) if 0 in batch else model(**batch)
    return made if isinstance(made, Tensor) else made.loss


@dataclass(frozen=True)
class Worst:
    """Largest differences over all steps of a case on one rank."""

    loss: float = 0.0
    norm: float = 0.0
    """Relative."""
    gradient: float = 0.0
    where: str = ""
    """Of the gradient."""
    seen: frozenset[str] = frozenset()
    """Parameters that this rank compared."""
    error: str = ""

    def beyond(self, *, loss: float = LOSS, gradient: float = GRADIENT) -> bool:
        return bool(self.error) or not (self.loss <= loss and self.gradient <= gradient and self.norm <= gradient)


def trained(case: Case, *, compiled: bool = False) -> Worst:
    """A case on this rank."""
    subject, plan = _subject(case.key), case.plan
    c = plan.candidate
    whole = _whole(case.key, plan.inputs.job.global_batch, c.microbatch_size)
    with ExitStack() as stack:
        stack.enter_context(captured(_program(case.key, c.microbatch_size, _dtype(plan.inputs.job.precision))))
        stack.enter_context(mock.patch("planner.runtime.parallel.placed_blocks", return_value=_layouts(case)))
        model: Any = parallelize(copy.deepcopy(subject.model), plan, example_inputs=subject.inputs, compile=compiled)
    optimizer = _optimizer(model)
    worst = Worst()
    for step in range(STEPS):
        optimizer.zero_grad()
        batch = _batch(subject, plan.inputs.job.global_batch, step)
        loss = model.train_step(batch if 0 not in batch else tuple(batch.values()))
        worst = _compare(worst, model, whole.gradients[step])
        norm = model.clip_grad_norm_(MAX_NORM)
        worst = replace(
            worst,
            loss=max(worst.loss, abs(loss.item() - whole.losses[step])),
            norm=max(worst.norm, abs(norm.item() / whole.norms[step] - 1)),
        )
        optimizer.step()
    return worst


def _distance(part: Tensor, box: ChunkStorageMetadata, whole: Tensor) -> float:
    for dim, (start, length) in enumerate(zip(box.offsets, box.sizes, strict=True)):
        whole = whole.narrow(dim, start, length)
    return float((part.float() - whole).abs().max())


def _compare(worst: Worst, model: Any, expected: Mapping[str, Tensor]) -> Worst:
    largest = max(float(g.abs().max()) for g in expected.values())
    for fqn, param in model.named_parameters(remove_duplicate=False):
        if fqn in expected:
            assert param.grad is not None, f"{fqn} has no gradient"
            # Part by part: DTensor has no word for the shards of fused projections, nor for replicas of experts.
            parts = Boxes.of(param.grad, _experts(model, fqn)).chunks()
            error = max((_distance(part, box, expected[fqn]) for box, part in parts), default=0.0) / largest
            if not error <= worst.gradient:
                worst = replace(worst, gradient=error, where=fqn)
            worst = replace(worst, seen=worst.seen | {fqn})
    return worst


def all_trained(cases: Sequence[Case], folder: Path | None = None, compiled: bool = False) -> list[Worst]:
    """Cases one after the other on this rank; errors are told, not raised."""
    warnings.simplefilter("ignore")
    found = []
    for case in cases:
        try:
            found.append(trained(case, compiled=compiled))
        except Exception:  # noqa: BLE001  Other cases are to run, where all ranks fail alike.
            found.append(Worst(error=traceback.format_exc(limit=-6)))
    return found


def prepare(cases: Sequence[Case]) -> None:
    """What the ranks inherit."""
    for case in cases:
        plan = case.plan
        _layouts(case)
        _whole(case.key, plan.inputs.job.global_batch, plan.candidate.microbatch_size)


def compare(num_ranks: int, cases: Sequence[Case], *, timeout_s: float = 120.0, compiled: bool = False) -> list[Worst]:
    """Worst of all ranks per case.

    Raises:
        AssertionError: ranks died or did not end.
    """
    prepare(cases)
    ranks = run_ranks(num_ranks, all_trained, list(cases), None, compiled, timeout_s=timeout_s)
    return [_together(case, found) for case, found in zip(cases, zip(*ranks, strict=True), strict=True)]


def _together(case: Case, found: Sequence[Worst]) -> Worst:
    error = next((w.error for w in found if w.error), "")
    seen = frozenset[str]().union(*(w.seen for w in found))
    plan = case.plan
    missing = _whole(case.key, plan.inputs.job.global_batch, plan.candidate.microbatch_size).gradients[0].keys() - seen
    if missing and not error:
        error = f"nobody has gradients of {', '.join(sorted(missing))}"
    worst = max(found, key=lambda w: w.gradient)
    return Worst(max(w.loss for w in found), max(w.norm for w in found), worst.gradient, worst.where, seen, error)
