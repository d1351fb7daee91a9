"""Claims about tensor and sequence parallelism against real numbers: see `tests.planner.layouts.ranks`."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planner.capture.trace import trace
from planner.graph import Block
from planner.layouts.tensor_parallel import ParamShard, TensorParallel, analyse
from tests.planner.layouts.ranks import Ranks
from tests.planner.layouts.small import SEQ_LEN, graph

BATCH = 2
FAMILIES = ("gqa", "mqa", "gpt", "thirds", "bert", "qwen", "mixtral", "mla", "resnet", "vit")
BLOCKS = [
    (family, index)
    for family, count in zip(FAMILIES, (3, 3, 3, 3, 3, 3, 3, 4, 4, 3), strict=True)
    for index in range(count)
]


def given(block: Block, seq_len: int, num_classes: int) -> dict[int, Tensor]:
    """Random tensors for all that a block does not make."""
    random = torch.Generator().manual_seed(0)
    made: set[int] = set()
    found: dict[int, Tensor] = {}
    for op in block.ops:
        for v in op.inputs:
            if v not in made and v not in found:
                shape, dtype = block.values[v].shape(BATCH, seq_len), block.values[v].dtype
                if "float" in dtype:
                    found[v] = 0.5 * torch.randn(shape, generator=random, dtype=torch.float64) + 0.1
                else:
                    found[v] = torch.randint(num_classes, shape, generator=random)
        made.update(op.outputs)
    return found


def execute(block: Block, layout: TensorParallel, *, tp: int, along: bool = False, classes: int = 16) -> Ranks:
    return Ranks(block, layout, tp, along, BATCH, SEQ_LEN, given(block, SEQ_LEN, classes)).run()


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=1e-7, atol=1e-9)


def storages(block: Block, values: Iterable[int]) -> set[int]:
    return {block.values[v].storage for v in values}


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize(("family", "index"), BLOCKS)
def test_every_value_on_two_ranks_is_that_of_one_device(family: str, index: int, sequence_parallel: bool) -> None:
    """Forward and backward, each operation: shards joined, partial sums summed, and the rest equal on both ranks."""
    block = graph(family).blocks[index]
    layout = analyse(block)
    if any(size.size % 2 for size in layout.sizes):
        layout = layout.unsharded()
    if sequence_parallel and not layout.sequence_parallel:
        assert family in {"resnet", "vit"} or (family, index) == ("thirds", 2)
        return
    classes = 16 if family in {"resnet", "vit"} else 40
    one = execute(block, layout, tp=1, classes=classes)
    two = execute(block, layout, tp=2, along=sequence_parallel, classes=classes)
    for op in block.ops:
        for v in op.outputs:
            assert op.name == "empty" or close(two.whole(v), one.whole(v)), f"value {v} of {op}"
    assert storages(block, two.reduced["forward"]) == storages(block, layout.exits)
    if sequence_parallel:
        needed = storages(block, layout.entries)
        assert needed <= storages(block, two.gathered["forward"])


@pytest.mark.parametrize("family", ["gqa", "mqa", "gpt", "thirds", "vit"])
def test_gradients_are_reduced_once_per_entry_and_nowhere_else(family: str) -> None:
    block = graph(family).blocks[1]
    layout = analyse(block)
    two = execute(block, layout, tp=2)
    assert len(storages(block, two.reduced["backward"])) == len(layout.entries)
    sizes = [prod(two.shapes[v]) for v in layout.entries]
    kept = {block.values[v].storage: prod(two.shapes[v]) for v in two.reduced["backward"]}
    assert sorted(kept.values()) == sorted(sizes)


@pytest.mark.parametrize("family", ["mixtral", "qwen"])
def test_routing_weights_are_all_that_experts_reduce_besides(family: str) -> None:
    """The weights multiply a partial sum, so their gradient is one too: a few numbers per token, left out of prices."""
    block = graph(family).blocks[1]
    layout = analyse(block)
    two = execute(block, layout, tp=2)
    sizes = sorted(prod(two.shapes[v]) for v in two.reduced["backward"])
    assert len(sizes) == len(layout.entries) + 1
    assert sizes[0] <= BATCH * SEQ_LEN * 4 < sizes[1]


def params(family: str, index: int) -> dict[str, tuple[int, int]]:
    return {fqn: (s.dim, s.num_chunks) for fqn, s in analyse(graph(family).blocks[index]).params.items()}


def test_megatrons_layout_of_a_llama_layer_emerges() -> None:
    columns = dict.fromkeys(
        ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight", "feed_forward.w1.weight",
         "feed_forward.w3.weight"), (0, 1)
    )  # fmt: skip
    rows = dict.fromkeys(("attention.wo.weight", "feed_forward.w2.weight"), (1, 1))
    assert params("gqa", 1) == {**columns, **rows}
    assert params("gqa", 0) == {"tok_embeddings.weight": (0, 1)}
    assert params("gqa", 2) == {"output.weight": (0, 1)}
    layout = analyse(graph("gqa").blocks[1])
    assert (len(layout.entries), len(layout.exits)) == (2, 2)
    assert {(size.size, size.where) for size in layout.sizes} == {
        (4, "attention.wk.weight"),
        (24, "feed_forward.w1.weight"),
    }


def test_a_single_key_head_is_left_whole_and_its_gradient_reduced() -> None:
    layout = analyse(graph("mqa").blocks[1])
    assert "attention.wk.weight" not in layout.params
    assert layout.params["attention.wq.weight"] == ParamShard(dim=0, num_chunks=1)
    assert len(layout.entries) == 4


def test_a_rotated_key_that_all_heads_share_is_left_whole_and_its_gradient_reduced() -> None:
    """Latent attention: entries are the two latents, the shared key and the network's input."""
    layout = analyse(graph("mla").blocks[1])
    assert (layout.params["attention.wq_b.weight"].dim, layout.params["attention.wkv_b.weight"].dim) == (0, 0)
    assert not {"attention.wq_a.weight", "attention.wkv_a.weight"} & layout.params.keys()
    assert len(layout.entries) == 4


def test_biases_follow_the_outputs_of_their_matrices() -> None:
    found = params("bert", 1)
    assert found["attention.wq.bias"] == found["feed_forward.w1.bias"] == (0, 1)
    assert "attention.wo.bias" not in found
    assert "feed_forward.w2.bias" not in found


def test_three_matrices_in_one_are_three_chunks_and_interleaved_heads_one() -> None:
    assert params("thirds", 1) == {"qkv.weight": (0, 3), "qkv.bias": (0, 3), "out.weight": (1, 1)}
    assert params("gpt", 1)["attention.wqkv.weight"] == (0, 1)


def test_experts_are_cut_along_their_inner_width() -> None:
    found = params("mixtral", 1)
    assert (found["moe.experts.w1"], found["moe.experts.w3"], found["moe.experts.w2"]) == ((1, 1), (1, 1), (2, 1))
    assert "moe.router.gate.weight" not in found


def test_a_bottleneck_is_cut_between_two_of_its_convolutions() -> None:
    found = params("resnet", 1)
    assert found["conv2.weight"] == (0, 1)
    assert found["conv3.weight"] == (1, 1)
    assert found["bn2.weight"] == (0, 1)


def test_the_loss_over_sharded_classes_names_its_rows() -> None:
    block = graph("gqa").blocks[2]
    rows = analyse(block).loss_rows
    assert rows is not None
    assert block.values[rows].shape(BATCH, SEQ_LEN) == (BATCH * SEQ_LEN,)
    assert analyse(graph("gqa").blocks[1]).loss_rows is None


def test_a_model_without_repeated_blocks_pays_for_its_entries_too() -> None:
    """One layer is no repeated block: the whole model is one segment that has no incoming activations."""
    (block,) = graph("gqa", num_layers=1).blocks
    layout = analyse(block)
    assert len(layout.exits) == 2
    assert len(layout.entries) == 3
    one, two = (execute(block, layout, tp=tp, classes=40) for tp in (1, 2))
    for _, grad in block.param_grads:
        assert close(two.whole(grad), one.whole(grad))


def test_the_unsharded_form_keeps_the_sequence() -> None:
    whole = analyse(graph("gqa").blocks[1]).unsharded()
    assert whole.sequence_parallel
    assert not (whole.params or whole.sizes or whole.sharded_ops or whole.entries or whole.exits)
    assert set(whole.shard_dim) == {None}


class Layer(nn.Module):
    """A layer whose middle is ``act``; what that does to the inner width decides whether it can be sharded."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(8, 16), nn.Linear(16, 8), act

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(x)))


class Stack(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(act), Layer(act)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


@pytest.mark.parametrize(
    ("act", "sharded"),
    [
        (torch.relu, True),
        (lambda h: h * 2 + 1, True),
        (lambda h: h.softmax(-1), False),
        (lambda h: h.flip(-1), False),
        (lambda h: h.cumsum(-1), False),
        (lambda h: h - h.mean(-1, keepdim=True), False),
        (lambda h: torch.cat((h[..., 8:], h[..., :8]), dim=-1), False),
        (lambda h: nn.functional.layer_norm(h, (16,)), False),
        (lambda h: h.sort(-1).values, False),
        (lambda h: h.roll(1, -1), False),
    ],
    ids=["relu", "affine", "softmax", "flip", "cumsum", "centred", "swapped", "norm", "sorted", "rolled"],
)
def test_an_inner_width_is_sharded_only_where_no_operation_needs_it_whole(act: Any, sharded: bool) -> None:
    made = trace(Stack(act), lambda batch, seq_len: (torch.empty(batch, 4, 8),), seq_len=1)
    block = made.blocks[made.segments[0].block]
    layout = analyse(block)
    assert ("up.weight" in layout.params) == sharded
    one, two = (execute(block, layout, tp=tp) for tp in (1, 2))
    for v in (*block.outputs, *(grad for _, grad in block.param_grads)):
        assert close(two.whole(v), one.whole(v))
