from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner import models
from planner.errors import TraceError, UsageError
from tests.planner.capture import reference, small
from tests.planner.capture.small import DIM, SEQ_LEN, VOCAB, Layer, Stack, block_of, captured
from tests.planner.models.reference import DEEPSEEK, MIXTRAL, QWEN3_MOE, RESNET


class Returning(Stack):
    """Hands its logits and loss to a function that makes the result."""

    def __init__(self, result: Any) -> None:
        super().__init__([Layer(), Layer()])
        self.result = result

    def forward(self, ids: Tensor, labels: Tensor) -> Any:
        logits = self.logits(ids)
        return self.result(logits, F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten()))


# --- the loss ---


@pytest.mark.parametrize(
    "result",
    [
        lambda logits, loss: loss,
        lambda logits, loss: SimpleNamespace(loss=loss, logits=logits),
        lambda logits, loss: {"loss": loss, "logits": logits},
        lambda logits, loss: (logits, loss),
        lambda logits, loss: [loss, logits, loss.detach()],
    ],
    ids=["alone", "object", "dict", "last of a tuple", "first of a list"],
)
def test_the_models_own_loss_is_found(result: Any) -> None:
    graph = reference.at_one_point(Returning(result), small.tokens, 2, SEQ_LEN)
    alone = reference.at_one_point(Stack([Layer(), Layer()]), small.tokens, 2, SEQ_LEN)
    assert reference.count_ops(graph, 2, SEQ_LEN) == reference.count_ops(alone, 2, SEQ_LEN)


@pytest.mark.parametrize(
    "result",
    [
        lambda logits, loss: logits,
        lambda logits, loss: (loss, loss * 2.0),
        lambda logits, loss: {"loss": None, "logits": logits},
    ],
    ids=["logits", "two losses", "loss is None"],
)
def test_without_one_loss_the_sum_of_the_outputs_is_differentiated_with_a_warning(result: Any) -> None:
    graph = captured(Returning(result))
    assert graph.warnings == ("the model returns no loss: the sum of its outputs was differentiated instead",)
    assert {op.phase for op in graph.blocks[0].ops} == {"forward", "backward"}


def test_loss_fn_takes_the_last_input_as_its_target() -> None:
    class Logits(Stack):
        def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
            return self.logits(ids)

    def loss_fn(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    graph = captured(Logits([Layer(), Layer()]), loss_fn=loss_fn)
    assert graph.blocks == captured(Stack([Layer(), Layer()])).blocks
    assert graph.warnings == ()


@pytest.mark.parametrize(
    ("loss_fn", "problem"),
    [
        (lambda loss, labels: loss * labels, r"loss_fn returned a tensor of shape \[2, 8\]"),
        (lambda loss, labels: 0.0, "loss_fn returned float"),
        (F.cross_entropy, r"cannot trace .*: .*batch"),
    ],
    ids=["a tensor", "a number", "raises"],
)
def test_a_loss_fn_that_gives_no_loss_is_refused(loss_fn: Any, problem: str) -> None:
    class Whole(Stack):
        def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
            return (
                self.logits(ids).float().mean((1, 2))[:1].sum() if loss_fn is not F.cross_entropy else self.logits(ids)
            )

    with pytest.raises(TraceError, match=problem):
        captured(Whole([Layer(), Layer()]), loss_fn=loss_fn)


@pytest.mark.parametrize(
    "result",
    [
        lambda logits, loss: loss.detach(),
        lambda logits, loss: (logits.argmax(-1),),
        lambda logits, loss: SimpleNamespace(logits=logits),
    ],
    ids=["loss", "indices", "unknown object"],
)
def test_a_result_without_a_gradient_is_refused(result: Any) -> None:
    with pytest.raises(TraceError, match=r"Returning .*depends on (no|a) trained parameter"):
        captured(Returning(result))
    model = Stack([Layer(), Layer()]).requires_grad_(False)
    with pytest.raises(TraceError, match="the loss of Stack depends on no trained parameter: check requires_grad"):
        captured(model)


# --- inputs and experts ---


def test_wrong_example_inputs_are_refused() -> None:
    model = Stack([Layer(), Layer()])
    with pytest.raises(
        TraceError, match=r"inputs\(batch=2, seq_len=8\) raised KeyError: 'ids'. It must return"
    ) as caught:
        captured(model, inputs=lambda batch, seq_len: {}["ids"])
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(TraceError, match="returned FakeTensor: it must return the example inputs as a tuple"):
        captured(model, inputs=torch.zeros)
    with pytest.raises(TraceError, match=r"cannot trace Stack: TypeError: .*missing 1 required positional argument"):
        captured(model, inputs=lambda batch, seq_len: small.tokens(batch, seq_len)[:1])


def test_a_length_beyond_the_models_limit_is_a_usage_error() -> None:
    with torch.device("meta"):
        model, inputs = models.build("gpt2")
    with pytest.raises(UsageError, match=r"seq_len \(1025\) must be between 1 and max_seq_len \(1024\)"):
        captured(model, inputs=inputs, seq_len=1025)


@pytest.mark.parametrize("config", [MIXTRAL, QWEN3_MOE, DEEPSEEK], ids=["mixtral", "qwen3", "deepseek"])
def test_experts_trace_without_looking_at_values(config: Any) -> None:
    block = block_of(reference.built_at_one_point(config, 2, 16), "layers.1")
    products = [op for op in block.ops if op.name == "_grouped_mm"]
    assert [op.phase for op in products] == ["forward"] * 3 + ["backward"] * 6
    rows = {block.values[op.inputs[0]].shape(2, 16)[0] for op in products if op.phase == "forward"}
    assert rows == {2 * 16 * config.top_k}


# --- the model is left alone ---


class Branch(Layer):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        if self.a(x).mean().item() > 0:
            return x
        return -x


class Lazy(Layer):
    """Computes a table at its first call and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.calls: dict[str, int] = {}
        self.register_buffer("late", None)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        self.calls["n"] = self.calls.get("n", 0) + 1
        if self.table is None or len(self.table) < x.shape[1]:
            self.table = torch.ones(x.shape[1], 1, dtype=x.dtype)
            self.late = self.table * 2
        return x + self.a(x) * self.table[: x.shape[1]]


@pytest.mark.parametrize("failing", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_model_is_left_as_it_was(device: str, dtype: torch.dtype, failing: bool) -> None:
    with torch.device(device):
        model = Stack([Lazy(), Branch() if failing else nn.Sequential(Layer(), nn.BatchNorm1d(SEQ_LEN))], tied=True)
    model.layers[0].eval()
    own = model.layers[1].forward = model.layers[1].forward  # an attribute of this very module, as wrappers set it
    before = [(name, id(p), p.device, p.dtype, p.grad) for name, p in model.named_parameters(remove_duplicate=False)]
    buffers = {name: (id(b), b._version) for name, b in model.named_buffers()}
    values = [p.detach().clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]

    def run() -> None:
        captured(model, dtype=dtype, seq_len=SEQ_LEN if failing else 1, inputs=lambda b, _: small.tokens(b, SEQ_LEN))

    if failing:
        with pytest.raises(TraceError):
            run()
    else:
        run()
    after = [(name, id(p), p.device, p.dtype, p.grad) for name, p in model.named_parameters(remove_duplicate=False)]
    assert after == before
    assert {name: (id(b), b._version) for name, b in model.named_buffers()} == buffers
    assert device == "meta" or all(torch.equal(a, b) for a, b in zip(model.parameters(), values, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert model.layers[1].__dict__["forward"] is own and "forward" not in model.layers[0].__dict__
    lazy = model.layers[0]
    assert lazy.table is None and lazy.late is None and lazy.calls == {}


def test_dropout_and_batch_norm_train_whatever_the_models_mode() -> None:
    model = nn.Sequential(
        OrderedDict(a=nn.Linear(DIM, DIM), b=nn.Sequential(nn.Dropout(0.5), nn.Linear(DIM, 1)))
    ).eval()
    graph = captured(model, inputs=lambda batch, _: (torch.zeros(batch, DIM),))
    assert "native_dropout" in {op.name for op in block_of(graph, "b").ops}
    assert not model.training


def test_the_graph_tells_parameters_and_names() -> None:
    graph = captured(Stack([Layer(), Layer()], tied=True), name="mine")
    assert graph.name == "mine"
    assert graph.aliases == {"output.weight": "embedding.weight"}
    assert [(p.fqn, p.shape) for p in graph.params[:2]] == [
        ("embedding.weight", (VOCAB, DIM)), ("layers.0.a.weight", (DIM, DIM)),
    ]  # fmt: skip
    assert graph.num_parameters == VOCAB * DIM + 2 * (DIM * DIM + DIM)


def test_batch_norm_of_a_real_model_counts_in_training_mode() -> None:
    names = {op.name for block in reference.built_at_one_point(RESNET, 2, 1).blocks for op in block.ops}
    assert {"native_batch_norm", "native_batch_norm_backward"} <= names
