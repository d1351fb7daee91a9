from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import pytest
import torch
from torch import nn

from planner import models
from planner.capture.trace import trace
from planner.graph import ModelGraph
from planner.layouts.model import analyse_model, param_layouts
from planner.layouts.pins import matches
from planner.plan import Candidate
from tests.planner.layouts.small import SEQ_LEN, graph


def candidate(tp: int, *, zero_stage: int = 3, dp_shard: int = 2) -> Candidate:
    return Candidate(
        pp=1, dp_replicate=1, dp_shard=dp_shard, tp=tp, sequence_parallel=False, zero_stage=zero_stage,
        microbatch_size=1, num_microbatches=1, recompute="none",
    )  # fmt: skip


@cache
def shallow(preset: str) -> ModelGraph:
    """A preset of full width with a few layers."""
    config: Any = models.preset(preset).config
    if hasattr(config, "num_layers"):
        config = replace(config, num_layers=getattr(config, "num_dense_layers", 0) + 2)
    with torch.device("meta"):
        module, inputs = models.build_from_config(config)
    return trace(module, inputs, name=preset, seq_len=min(models.preset(preset).seq_len, 64))


@pytest.mark.parametrize(
    "preset",
    ["gpt2", "llama2-7b", "llama3-8b", "mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "bert-large", "vit-l-16",
     "resnet-50"],
)  # fmt: skip
def test_every_parameter_has_exactly_one_layout(preset: str) -> None:
    """One preset per kind of model: the others differ in sizes alone."""
    made = shallow(preset)
    layouts = analyse_model(made)
    for tp in (1, 2, 3, 4):
        found = param_layouts(layouts, candidate(tp))
        for param in made.params:
            (layout,) = [one for one in found if matches(one.pattern, param.fqn)]
            assert set(layout.placements) == {"dp_replicate", "dp_shard", "cp", "tp"}
            placement = layout.placements["tp"]
            if tp == 1:
                assert (placement, layout.num_chunks) == ("R", 1)
            elif placement != "R" and layouts.obstacle(tp) is None:
                dim = int(placement.removeprefix("S(").removesuffix(")"))
                assert param.shape[dim] % (tp * layout.num_chunks) == 0
        assert len(found) < len(made.params) or len(made.params) < 10


@pytest.mark.parametrize(
    ("preset", "tp", "obstacle"),
    [
        ("llama3-8b", 8, None),
        ("llama3-8b", 16, "tp 16 does not divide 8 at layers.0.attention.wk.weight"),
        ("gpt2", 8, "tp 8 does not divide 12 at layers.0.attention.wo.weight"),
        ("gpt2", 3, None),
        ("qwen3-30b-a3b", 8, "tp 8 does not divide 4 at layers.0.attention.wk.weight"),
        ("bert-large", 16, None),
        ("deepseek-v3", 64, None),
    ],
)
def test_obstacles_name_the_size_and_the_parameter(preset: str, tp: int, obstacle: str | None) -> None:
    assert analyse_model(shallow(preset)).obstacle(tp) == obstacle


def test_a_vocabulary_that_tp_does_not_divide_stays_whole_and_so_does_its_twin() -> None:
    """GPT-2's 50,257 tokens: no obstacle, but embedding and head are replicated."""
    layouts = analyse_model(shallow("gpt2"))
    embedding, layer, head = layouts.at(2)
    assert not embedding.params
    assert not head.params
    assert layer.params
    tied = next(p for p in param_layouts(layouts, candidate(2)) if p.pattern == "tok_embeddings.weight")
    assert tied.placements["tp"] == "R"


def test_llamas_vocabulary_is_sharded_by_rows_at_both_ends() -> None:
    found = {p.pattern: p.placements["tp"] for p in param_layouts(analyse_model(shallow("llama3-8b")), candidate(8))}
    assert found["tok_embeddings.weight"] == found["output.weight"] == "S(0)"
    assert found["layers.*.attention.wo.weight"] == "S(1)"
    assert found["layers.*.attention_norm.weight"] == "R"


def test_fully_shard_shards_dim_0_and_only_where_it_shards_at_all() -> None:
    layouts = analyse_model(graph("gqa"))
    for zero_stage, placement in ((0, "R"), (1, "S(0)"), (3, "S(0)")):
        found = param_layouts(layouts, candidate(2, zero_stage=zero_stage))
        assert {p.placements["dp_shard"] for p in found} == {placement}
        assert {p.placements["dp_replicate"] for p in found} == {"R"}


def test_sequence_parallelism_needs_tp_a_sequence_and_a_length_that_divides() -> None:
    layouts = analyse_model(graph("gqa"))
    assert layouts.sequence_parallel(2, 64)
    assert not layouts.sequence_parallel(1, 64)
    assert not layouts.sequence_parallel(4, 6)
    assert not analyse_model(graph("vit")).sequence_parallel(2, 64)
    assert not analyse_model(graph("resnet")).sequence_parallel(2, 64)


class Tied(nn.Module):
    """Two layers of one weight (sharded by rows in one, by columns in the other) and names that only look like
    numbers' siblings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.layers.register_module("norm", nn.LayerNorm(8))
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers.children():
            x = layer(x)
        logits = self.head(x).flatten(0, 1).float()
        return nn.functional.cross_entropy(logits, labels.flatten())


def test_a_pattern_never_covers_a_name_that_it_was_not_made_from() -> None:
    def inputs(batch: int, seq_len: int) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(batch, seq_len, dtype=torch.int64),) * 2

    made = trace(Tied(), inputs, seq_len=SEQ_LEN)
    for tp in (1, 2):
        found = param_layouts(analyse_model(made), candidate(tp))
        for param in made.params:
            assert sum(matches(one.pattern, param.fqn) for one in found) == 1


@pytest.mark.parametrize("family", ["gqa", "gpt", "thirds", "bert", "mixtral", "resnet"])
def test_shards_of_all_ranks_are_the_parameters(family: str) -> None:
    made = graph(family)
    layouts = analyse_model(made)
    held = 0
    for param in made.params:
        (layout,) = [one for one in param_layouts(layouts, candidate(2)) if matches(one.pattern, param.fqn)]
        held += prod(param.shape) // (1 if layout.placements["tp"] == "R" else 2)
    assert made.num_parameters / 2 <= held < made.num_parameters


def test_a_star_stands_for_one_component() -> None:
    assert matches("layers.*.w", "layers.12.w")
    assert not matches("layers.*.w", "layers.1.a.w")
    assert not matches("layers.*.w", "layers.w")
    assert not matches("layers.*", "Layers.1")
