"""Layouts that people found by hand come out as the best where they are known to be."""

from __future__ import annotations

from typing import Any, NamedTuple

from planner.graph import Block
from planner.solvers.block_layout.detail import Detail, PlacedOp, detail
from planner.solvers.block_layout.mesh import LayoutMesh
from planner.solvers.block_layout.model_layout import LayoutSolution
from planner.solvers.block_layout.solving import solve_layouts
from planner.solvers.setting import Setting
from tests.planner.solvers.block_layout.cases import SMALL, llama, mesh_of

WIDE: dict[str, Any] = {"dim": 4096, "num_layers": 4, "vocab_size": 1024}
COLUMNS = ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3")
ROWS = ("attention.wo", "feed_forward.w2")
NORMS = ("attention_norm", "ffn_norm")
WEIGHTS = (*COLUMNS, *ROWS)


class Solved(NamedTuple):
    setting: Setting
    mesh: LayoutMesh
    solution: LayoutSolution

    def segment(self, index: int) -> Lines:
        block = self.setting.graph.blocks[self.setting.graph.segments[index].block]
        return Lines(block, detail(self.solution.best.segments[index], self.mesh))


class Lines(NamedTuple):
    """A segment in words."""

    block: Block
    said: Detail

    def params(self) -> dict[str, str]:
        """Layouts at rest."""
        return {fqn.removesuffix(".weight"): " ".join(map(str, layout)) for fqn, layout in self.said.params.items()}

    def op(self, name: str, fqn: str = "") -> PlacedOp:
        [found] = [op for op in self.said.ops if any(self._is(i, name, fqn) for i in op.ops)]
        return found

    def _is(self, i: int, name: str, fqn: str) -> bool:
        return self.block.ops[i].name == name and (not fqn or self.block.ops[i].fqn == fqn)

    def inputs(self, name: str, fqn: str = "") -> list[str]:
        return [" ".join(map(str, layout)) for _, layout in self.op(name, fqn).inputs]

    def collectives(self) -> list[tuple[str, str, str, str]]:
        """All that communicate: placements from and to, forward and backward."""
        every = [moved for op in self.said.ops for moved in op.redistributed] + list(self.said.leaving)
        moves = [step.move for moved in every for step in moved.steps]
        return [
            (str(m.source[m.axis]), str(m.target[m.axis]), m.forward, m.backward)
            for m in moves
            if (m.forward, m.backward) != ("local", "local")
        ]


def solved(cluster: str, *sizes: int, batch: int, seq_len: int, limit_bytes: float | None = None,
           **config: Any) -> Solved:  # fmt: skip
    setting = llama(cluster, batch=batch, seq_len=seq_len, **config)
    mesh = mesh_of(setting.cluster, *sizes)
    return Solved(setting, mesh, solve_layouts(setting, mesh, batch=batch, limit_bytes=limit_bytes))


def test_many_samples_few_weights_and_a_slow_network_make_data_parallelism() -> None:
    """A layer's gradients are fewer bytes than any of its activations."""
    layer = solved("h100-sxm:8x1", 8, batch=64, seq_len=512, precision="fp32", **SMALL).segment(1)
    assert set(layer.params().values()) == {"R"}
    assert all(layer.inputs("mm", fqn) == ["S(0)", "B"] for fqn in WEIGHTS)
    assert layer.collectives() == [("R", "B", "local", "all_reduce")] * 9


def test_less_memory_makes_parameters_sharded_and_gathered_where_they_are_used() -> None:
    """Of what data parallelism keeps, only parameters and their states are there more than once."""
    job: dict[str, Any] = {"batch": 64, "seq_len": 512, "precision": "fp32", **SMALL}
    free = solved("h100-sxm:8x1", 8, **job).solution.best
    found = solved("h100-sxm:8x1", 8, limit_bytes=0.79 * free.peak_bytes, **job)
    assert found.solution.best.peak_bytes <= 0.79 * free.peak_bytes
    for index in (1, 2, 3, 4):
        layer = found.segment(index)
        assert layer.params() == dict.fromkeys(WEIGHTS, "S(0)") | dict.fromkeys(NORMS, "R")
        assert all(layer.inputs("mm", fqn) == ["S(0)", "B"] for fqn in WEIGHTS)
        assert layer.collectives().count(("S(0)", "B", "all_gather", "reduce_scatter")) == len(WEIGHTS)


def megatron(layer: Lines) -> None:
    """Column-parallel, then row-parallel, heads in between."""
    assert {fqn: layer.params()[fqn] for fqn in WEIGHTS} == dict.fromkeys(COLUMNS, "S(0)") | dict.fromkeys(ROWS, "S(1)")
    assert all(layer.inputs("mm", fqn) == ["B", "S(1)"] for fqn in COLUMNS)
    assert all(layer.inputs("mm", fqn) == ["S(1)", "S(0)"] for fqn in ROWS)
    assert layer.inputs("attention") == ["S(1)"] * 3  # heads of [batch, heads, seq, dim]


def test_wide_weights_and_few_tokens_make_megatron_tensor_parallelism() -> None:
    """One sample of 63 tokens cannot be divided by 8, and its activations are small beside the weights."""
    layer = solved("h100-sxm:1x8", 8, batch=1, seq_len=63, **WIDE).segment(1)
    megatron(layer)
    into, out = ("R", "B", "local", "all_reduce"), ("P", "R", "all_reduce", "local")
    assert layer.collectives() == [into, out, into, out]


def test_many_tokens_make_megatron_sequence_parallelism() -> None:
    """Without reduction in the switch, an all-reduce is a reduce-scatter and an all-gather: norms in between are free
    to be shared out."""
    layer = solved("dgx-a100:1x8", 8, batch=1, seq_len=4096, **WIDE).segment(2)
    megatron(layer)
    assert all(layer.inputs("rms_norm", fqn) == ["S(1)", "B"] for fqn in NORMS)
    into, out = ("S(1)", "B", "all_gather", "reduce_scatter"), ("P", "S(0)", "reduce_scatter", "all_gather")
    weight = ("R", "B", "local", "all_reduce")  # of a norm
    assert layer.collectives() == [weight, into, out, weight, into, out]  # rows of [batch * seq] are S(0) of one sample


def test_a_long_sequence_and_small_weights_make_ulysses() -> None:
    """Weights are fewer than activations, attention too short to hide keys that travel round."""
    config = SMALL | {"dim": 2048, "num_heads": 32, "num_kv_heads": 32, "num_layers": 2}
    layer = solved("gb200-nvl72:1x16", 16, batch=1, seq_len=32768, **config).segment(1)
    assert set(layer.params().values()) == {"R"}
    assert all(layer.inputs("mm", fqn) == ["S(0)", "B"] for fqn in WEIGHTS)  # rows of [batch * seq]
    assert layer.inputs("attention") == ["S(1)"] * 3
    assert layer.op("attention").implementations == ("local",)
    there = [("S(2)", "S(1)", "all_to_all", "all_to_all")]  # of [batch, heads, seq, dim], and back of [batch, seq, dim]
    assert [move for move in layer.collectives() if move[0] != "R"] == there * 4


def test_a_long_sequence_whose_attention_hides_its_keys_makes_ring_attention() -> None:
    """Attention grows with the square of the length, what travels with the length."""
    config = SMALL | {"dim": 2048, "num_heads": 32, "num_kv_heads": 32, "num_layers": 2}
    layer = solved("gb200-nvl72:1x16", 16, batch=1, seq_len=65536, **config).segment(1)
    assert layer.inputs("attention") == ["S(2)"] * 3
    assert layer.op("attention").implementations == ("ring",)
    assert {move[0] for move in layer.collectives()} == {"R"}


def test_a_large_vocabulary_is_sharded_with_its_loss() -> None:
    """Gathered logits, or the head's gradient, would be the largest tensors of all."""
    found = solved("h100-sxm:1x8", 8, batch=1, seq_len=512, dim=4096, num_layers=2, vocab_size=128256)
    head, embedding = found.segment(-1), found.segment(0)
    assert head.params() == {"norm": "R", "output": "S(0)"}
    assert head.inputs("mm", "output") == ["B", "S(1)"]
    assert head.op("nll_loss_forward").implementations == ("loss_parallel",)
    assert head.inputs("nll_loss_forward")[0] == "S(1)"
    assert all(move[2] != "all_gather" for move in head.collectives())
    assert embedding.inputs("embedding")[0] in ("S(0)", "S(1)")  # rows, or their width


def test_llama_3_8b_on_eight_nodes_is_tensor_parallel_inside_of_them() -> None:
    """A network between nodes a tenth as fast as the links inside: widths and heads go where the links are."""
    found = solved("h100-sxm:8x8", 8, 8, batch=16, seq_len=8192)
    for index in (1, 16, 32):
        layer = found.segment(index)
        for fqn in ("attention.wq", "attention.wk", "attention.wv"):
            assert layer.params()[fqn].split()[1] == "S(0)"
            x, weight = layer.inputs("mm", fqn)
            assert (x.split()[1], weight.split()[1]) == ("B", "S(1)")
        assert [x.split() for x in layer.inputs("attention")] == [["S(0)", "S(1)"]] * 3  # samples outside, heads inside
