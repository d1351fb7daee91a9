from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from costmodels.compute import DTYPE_BYTES
from planner import ops
from planner.errors import TraceError
from planner.graph import Block, Op
from tests.planner.capture import reference, small
from tests.planner.capture.small import Stack, block_of

BATCH, HEADS, LEN, KV_LEN, HEAD_DIM = 2, 4, 8, 6, 16
DIM = HEADS * HEAD_DIM


class Attending(nn.Module):
    """Projects features [batch, LEN, DIM] and lets them attend to a part of themselves; all is a parameter."""

    def __init__(self, kv_heads: int = HEADS, kv_len: int = LEN, value_dim: int = HEAD_DIM, **options: Any) -> None:
        super().__init__()
        self.shape = (kv_heads, kv_len, value_dim)
        self.query = nn.Linear(DIM, HEADS * HEAD_DIM, bias=False)
        self.key = nn.Linear(DIM, kv_heads * HEAD_DIM, bias=False)
        self.value = nn.Linear(DIM, kv_heads * value_dim, bias=False)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        kv_heads, kv_len, value_dim = self.shape
        q = self.query(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
        k = self.key(x[:, :kv_len]).unflatten(-1, (kv_heads, HEAD_DIM)).transpose(1, 2)
        v = self.value(x[:, :kv_len]).unflatten(-1, (kv_heads, value_dim)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, **self.options).float().mean()


def features(batch: int, _seq_len: int) -> tuple[Tensor]:
    return (torch.zeros(batch, LEN, DIM),)


def traced(model: nn.Module) -> Block:
    (block,) = reference.at_one_point(model, features, BATCH, 1).blocks
    return block


def calls(block: Block) -> list[Op]:
    return [op for op in block.ops if op.name.startswith("attention")]


def shapes(block: Block) -> list[tuple[int, ...]]:
    return [value.shape(BATCH, 1) for value in block.values]


def flop(block: Block) -> tuple[int, int]:
    total = {"forward": 0, "backward": 0}
    for op in block.ops:
        total[op.phase] += ops.flop(op, shapes(block))
    return total["forward"], total["backward"]


def eager_flop(model: nn.Module) -> tuple[int, int]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return reference.eager_flop_of(lambda: model(torch.zeros(BATCH, LEN, DIM)))


@pytest.mark.parametrize(
    ("options", "explicit"),
    [
        ({}, False),
        ({"is_causal": True}, False),
        ({"kv_len": KV_LEN}, False),
        ({"attn_mask": torch.zeros(LEN, LEN)}, False),
        ({"value_dim": HEAD_DIM // 2}, True),
        ({"dropout_p": 0.5}, True),
    ],
    ids=["plain", "causal", "shorter keys", "mask", "narrow values", "dropout"],
)
def test_flop_is_torchs_and_fused_backward_computes_the_scores_again(options: dict[str, Any], explicit: bool) -> None:
    model = Attending(**options)
    forward, backward = eager_flop(model)
    if explicit:
        # The CPU has no fused kernel for these: its backward reads the scores that its forward has kept.
        backward += 2 * BATCH * HEADS * LEN * LEN * HEAD_DIM
    block = traced(model)
    assert [op.name for op in calls(block)] == ["attention", "attention_backward"]
    assert flop(block) == (forward, backward)


def test_fewer_key_heads_cost_what_repeated_ones_do() -> None:
    block = traced(Attending(kv_heads=2, enable_gqa=True))
    attention, backward = calls(block)
    whole = calls(traced(Attending()))
    expected = [ops.flop(op, shapes(traced(Attending()))) for op in whole]
    assert [ops.flop(op, shapes(block)) for op in (attention, backward)] == expected
    sizes = [shapes(block)[v] for v in backward.outputs]
    assert sizes == [(BATCH, heads, LEN, HEAD_DIM) for heads in (HEADS, 2, 2)]


@pytest.mark.parametrize(("causal", "value_dim"), [(True, HEAD_DIM), (False, 8)])
def test_the_call_tells_its_dims(causal: bool, value_dim: int) -> None:
    block = traced(Attending(kv_len=KV_LEN, value_dim=value_dim, is_causal=causal))
    found = [ops.attention(op, shapes(block)) for op in calls(block)]
    dims = {"batch": BATCH, "heads": HEADS, "q_len": LEN, "kv_len": KV_LEN, "head_dim": HEAD_DIM}
    assert found == [
        ops.Attention(**dims, value_dim=value_dim, causal=causal, backward=backward) for backward in (False, True)
    ]
    assert ops.attention(block.ops[0], shapes(block)) is None


def test_the_result_and_its_memory_are_those_of_torchs_fused_kernel() -> None:
    with FakeTensorMode():
        q, k, v = (torch.zeros(BATCH, HEADS, LEN, HEAD_DIM, dtype=torch.bfloat16) for _ in range(3))
        out, logsumexp, *_ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    block = traced(Attending())
    ours = [block.values[v] for v in calls(block)[0].outputs]
    assert [(v.shape(BATCH, 1), v.dtype) for v in ours] == [
        (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in (out, logsumexp)
    ]


def test_no_matrix_of_scores_is_ever_held() -> None:
    for options in ({"dropout_p": 0.5}, {"value_dim": 4}, {"attn_mask": None}):
        assert not any(shape[-2:] == (LEN, LEN) for shape in shapes(traced(Attending(**options))))


def test_a_learned_mask_gets_a_gradient() -> None:
    class Biased(Attending):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1, HEADS, LEN, LEN))

        def forward(self, x: Tensor) -> Tensor:
            self.options = {"attn_mask": self.bias}
            return super().forward(x)

    block = traced(Biased())
    grads = dict(block.param_grads)
    assert shapes(block)[grads["bias"]] == (1, HEADS, LEN, LEN)
    assert grads["bias"] in calls(block)[1].outputs


def test_two_dims_are_a_single_head() -> None:
    class Bare(Attending):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.query(x[0]), self.key(x[0]), self.value(x[0])
            return F.scaled_dot_product_attention(q, k, v).float().mean()

    block = traced(Bare())
    assert shapes(block)[calls(block)[0].outputs[0]] == (1, 1, LEN, DIM)


class Heads(nn.Module):
    """Attention over tensors of more or fewer than four dims."""

    def __init__(self, *lead: int) -> None:
        super().__init__()
        self.lead = lead
        self.weight = nn.Parameter(torch.zeros(DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = (x * self.weight).reshape(x.shape[0], *self.lead, LEN, -1)
        return F.scaled_dot_product_attention(x, x, x).float().mean()


@pytest.mark.parametrize("lead", [(), (2, 2)], ids=["without heads", "with two dims of heads"])
def test_any_number_of_leading_dims_is_one_batch(lead: tuple[int, ...]) -> None:
    block = traced(Heads(*lead))
    forward, backward = eager_flop(Heads(*lead))
    # The CPU's fused kernel takes four dims only, see above.
    assert flop(block) == (forward, backward + 2 * BATCH * LEN * LEN * DIM)


@pytest.mark.parametrize("lead", [(), (2, 2)], ids=["without heads", "with two dims of heads"])
def test_a_mask_of_any_number_of_dims_keeps_its_gradient(lead: tuple[int, ...]) -> None:
    class Biased(Heads):
        def __init__(self) -> None:
            super().__init__(*lead)
            self.bias = nn.Parameter(torch.zeros(*lead, LEN, LEN))

        def forward(self, x: Tensor) -> Tensor:
            x = (x * self.weight).reshape(x.shape[0], *self.lead, LEN, -1)
            bias = self.bias.expand(x.shape[0], *self.bias.shape)
            return F.scaled_dot_product_attention(x, x, x, attn_mask=bias).float().mean()

    block = traced(Biased())
    assert shapes(block)[dict(block.param_grads)["bias"]] == (*lead, LEN, LEN)


@pytest.mark.parametrize(
    "options", [{"kv_heads": 2}, {"kv_heads": 3, "enable_gqa": True}], ids=["without the flag", "not a multiple"]
)
def test_heads_that_do_not_fit_are_refused_as_torch_does(options: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError):
        Attending(**options)(torch.zeros(BATCH, LEN, DIM))
    with pytest.raises(
        TraceError, match=r"ValueError: scaled_dot_product_attention: query, key and value \[2, 4, 8, 16\]"
    ):
        traced(Attending(**options))


def test_attention_inside_of_torchs_own_modules_is_fused_too() -> None:
    layers = [nn.TransformerEncoderLayer(small.DIM, 2, 32, batch_first=True) for _ in range(2)]
    block = block_of(reference.at_one_point(Stack(layers), small.tokens, 2, 8), "layers.0")
    assert [op.name for op in calls(block)] == ["attention", "attention_backward"]


def test_attention_weights_that_are_asked_for_are_computed() -> None:
    class Weights(Stack):
        def body(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x, weights = layer(x, x, x, need_weights=True)
                x = x + weights.mean()
            return x

    layers = [nn.MultiheadAttention(small.DIM, 2, batch_first=True) for _ in range(2)]
    block = block_of(reference.at_one_point(Weights(layers), small.tokens, 2, 8), "layers.0")
    assert not calls(block)
    assert "_softmax" in {op.name for op in block.ops}


def test_torch_is_left_as_it_was() -> None:
    before = F.scaled_dot_product_attention, torch.rms_norm, F.dropout
    traced(Attending())
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Attending()(torch.zeros(BATCH, LEN, 3))
    assert (F.scaled_dot_product_attention, torch.rms_norm, F.dropout) == before
    q = torch.zeros(1, 1, 4, 8)
    assert F.scaled_dot_product_attention(q, q, q).shape == q.shape


def test_saved_bytes_of_fused_attention() -> None:
    block = traced(Attending(value_dim=8))
    sizes = {v: shapes(block)[v] for v in block.saved}
    # query, key, value (as projected) and result in bfloat16, and one float32 per query.
    expected = sorted([DIM * LEN * BATCH * 2] * 2 + [HEADS * 8 * LEN * BATCH * 2] * 2 + [BATCH * HEADS * LEN * 4])
    found = sorted(torch.Size(size).numel() * DTYPE_BYTES[block.values[v].dtype] for v, size in sizes.items())
    assert found == expected
