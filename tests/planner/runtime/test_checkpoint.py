"""Training goes on under another plan as if nothing had happened."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from planner.capture.program import ModelProgram, capture_program
from planner.capture.sources import example_function
from planner.errors import CheckpointError, OutputExistsError
from planner.runtime.boxes import _cut
from planner.runtime.checkpoint import load, save
from planner.runtime.parallelize import parallelize
from tests.planner.runtime.gloo import run_ranks
from tests.planner.runtime.plans import captured, plan_of

WIDTH, HEADS, VOCABULARY, LENGTH = 24, 4, 30, 6
EPS = 1e-4
"""Biases of keys have no gradient but for rounding, which a smaller one would make steps of."""


class Layer(nn.Module):
    """Queries, keys and values in one product."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, _ = x.shape
        q, k, v = (t.view(b, s, HEADS, -1).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(b, s, -1))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) * self.scale
        for layer in self.layers:
            x = layer(x)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


class Wider(Fused):
    def __init__(self) -> None:
        super().__init__()
        self.layers.append(Layer())
        self.layers[0].norm = nn.Identity()


def batch(samples: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, VOCABULARY, (2, samples, LENGTH), generator=generator)
    return tokens[0], tokens[1]


@cache
def program(samples: int) -> ModelProgram:
    inputs, _ = example_function(batch(), where="examples")
    return capture_program(Fused(), inputs, batch=samples, seq_len=LENGTH, dtype=torch.float32)


def _laid_out(seed: int, changes: dict[str, Any]) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    samples = changes["microbatch_size"]
    plan = plan_of(program(samples).graph, seq_len=LENGTH, **changes)
    with captured(program(samples)):
        model = parallelize(Fused(), plan, example_inputs=batch())
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, eps=EPS)


def _steps(model: Any, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        losses.append(model.train_step(batch()).item())
        optimizer.step()
    return losses


@cache
def expected() -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of 4 steps on one process, and the weights after 2."""
    torch.manual_seed(0)
    model = Fused()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=EPS)
    losses, weights = [], {}
    for step in range(4):
        if step == 2:
            weights = copy.deepcopy(model.state_dict())
        optimizer.zero_grad()
        loss = model(*batch())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, weights


FROM = {
    "tp x fsdp": {"tp": 2, "dp_shard": 2, "zero_stage": 3, "microbatch_size": 4},
    "pp x tp": {"pp": 2, "tp": 2, "microbatch_size": 4, "num_microbatches": 2},
}
ON_FOUR = {
    "fsdp": {"dp_shard": 4, "zero_stage": 3, "microbatch_size": 2},
    "tp": {"tp": 4, "microbatch_size": 8},
    "hsdp x tp": {"dp_replicate": 2, "tp": 2, "microbatch_size": 4},
    "pp x fsdp": {"pp": 2, "dp_shard": 2, "zero_stage": 2, "microbatch_size": 2, "num_microbatches": 2},
}
ON_TWO = {"lost half": {"dp_shard": 2, "zero_stage": 1, "microbatch_size": 4}, "tp": {"tp": 2, "microbatch_size": 8}}


def _save(folder: Path) -> None:
    for name, changes in FROM.items():
        model, optimizer = _laid_out(0, changes)
        _steps(model, optimizer, 2)
        save(model, optimizer, folder / name)


def _go_on(folder: Path, plans: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    found = {}
    for source in FROM:
        for name, changes in plans.items():
            model, optimizer = _laid_out(1, changes)
            load(model, optimizer, folder / source)
            found[f"{source} -> {name}"] = _steps(model, optimizer, 2)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("checkpoints")
    for samples in (2, 4, 8):
        program(samples)
    run_ranks(4, _save, found)
    return found


@pytest.mark.parametrize(("ranks", "plans"), [(4, ON_FOUR), (2, ON_TWO)])
def test_training_goes_on_under_another_plan(folder: Path, ranks: int, plans: dict[str, dict[str, Any]]) -> None:
    for found in run_ranks(ranks, _go_on, folder, plans):
        assert len(found) == 2 * len(plans)
        for losses in found.values():
            assert losses == pytest.approx(expected()[0][2:], abs=1e-5)


@pytest.mark.parametrize("source", FROM)
def test_one_process_reads_it_without_any_plan(folder: Path, source: str) -> None:
    torch.manual_seed(1)
    model = Fused()
    optimizer = torch.optim.AdamW(model.parameters(), lr=7.0)
    load(model, optimizer, folder / source)
    for name, weight in expected()[1].items():
        torch.testing.assert_close(model.state_dict()[name], weight, atol=1e-5, rtol=1e-4)
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert all(state["step"] == 2 for state in optimizer.state.values())


def test_another_model_is_refused_before_anything_changes(folder: Path) -> None:
    model = Wider()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=r"only in the model layers\.2\..*only in the checkpoint layers\.0\.norm"):
        load(model, None, folder / "tp x fsdp")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_no_checkpoint_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load(Fused(), None, tmp_path / "nothing")


def test_a_checkpoint_is_not_written_over(folder: Path) -> None:
    written = (folder / "tp x fsdp" / ".metadata").stat().st_mtime_ns
    with pytest.raises(OutputExistsError, match="holds a checkpoint already"):
        save(Fused(), None, folder / "tp x fsdp")
    assert (folder / "tp x fsdp" / ".metadata").stat().st_mtime_ns == written


def test_parts_of_several_runs_are_cut_as_torch_does() -> None:
    runs = [(0, 5), (10, 5), (20, 3)]
    whole = torch.cat([torch.arange(start, start + length) for start, length in runs])
    for count in (2, 3, 5, 16):
        parts = list(torch.chunk(whole, count)) + [whole[:0]] * count
        for at in range(count):
            found = [i for start, length in _cut(runs, count, at) for i in range(start, start + length)]
            assert found == parts[at].tolist()
