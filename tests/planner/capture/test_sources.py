from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planner import models
from planner.capture.sources import ModelSource, capture_model, example_function, load_model
from planner.errors import ModelSourceError, UnknownNameError, UsageError
from tests.planner.capture import small
from tests.planner.capture.small import Layer, Stack

BF16 = torch.bfloat16


def load(model: Any, **options: Any) -> ModelSource:
    return load_model(model, dtype=BF16, **options)


# --- built-in ---


def test_a_built_in_is_built_without_memory_in_the_compute_precision() -> None:
    source = load("llama3-405b")
    assert (source.name, source.seq_len) == ("llama3-405b", 8192)
    assert {(p.device.type, p.dtype) for p in source.module.parameters()} == {("meta", BF16)}
    assert [tuple(t.shape) for t in source.inputs(3, 5)] == [(3, 5), (3, 5)]
    assert torch.get_default_dtype() == torch.float32 and torch.empty(0).device.type == "cpu"


def test_an_unknown_built_in_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"llama3-8b") as caught:
        load("llama3-8")
    assert all(name in str(caught.value) for name in models.names())


# --- files ---

GOOD = """
import torch
from torch import nn

import helper  # beside this file

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(helper.WIDTH, 8), nn.ReLU(), nn.Linear(8, 2))

def {name}():
    return Net(), {inputs}

def other():
    pass
"""


def write(folder: Path, *, name: str = "make", inputs: str = "(torch.zeros(3, 4),)", text: str | None = None) -> str:
    (folder / "helper.py").write_text("WIDTH = 4\n")
    (folder / "net.py").write_text(GOOD.format(name=name, inputs=inputs) if text is None else text)
    return str(folder / "net.py")


@pytest.mark.parametrize(
    "inputs",
    [
        "(torch.zeros(3, 4),)",
        "dict(input=torch.zeros(3, 4))",
        "lambda batch, seq_len: (torch.zeros(batch, 4),)",
    ],
    ids=["tuple", "dict", "function"],
)
def test_a_factory_in_a_file(tmp_path: Path, inputs: str) -> None:
    graph, seq_len, version = capture_model(
        f"{write(tmp_path, inputs=inputs)}:make", seq_len=1, compute_dtype="bfloat16"
    )
    assert graph.name == "net.py:make" and seq_len == 1
    assert graph.num_parameters == 4 * 8 + 8 + 8 * 2 + 2
    assert [segment.prefix for segment in graph.segments] == ["0", "", "2", ""]
    assert torch.__version__.startswith(version) and "+" not in version
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("text", "factory", "error", "message"),
    [
        (None, "", ModelSourceError, r"net.py: name the factory, .*net.py:NAME. It has: make, other."),
        ("x = 1", "", ModelSourceError, r"It has: no function."),
        (None, ":mak", UnknownNameError, r"factory in .*net.py.*make"),
        ("def make(): return 1", ":make", ModelSourceError, r"make\(\) returned int: it must return \(module"),
        ("def make(): return 1, 2", ":make", ModelSourceError, r"make\(\) returned \(int, int\)"),
        ("from torch.nn import Linear\ndef make(): return Linear(1, 1), 2", ":make", ModelSourceError,
         r"inputs of .*net.py:make\(\) is int: it must return"),
    ],
    ids=["no name", "nothing to name", "misspelt", "a number", "a pair of numbers", "inputs of no kind"],
)  # fmt: skip
def test_a_file_that_gives_no_model(
    tmp_path: Path, text: str | None, factory: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(write(tmp_path, text=text) + factory)


@pytest.mark.parametrize(
    ("text", "message", "cause"),
    [
        (
            "def make(): return {}['width']",
            r"net.py:make\(\) raised KeyError while building on the meta device",
            KeyError,
        ),
        ("import nowhere", r"net.py raised ModuleNotFoundError while being imported", ModuleNotFoundError),
        ("def make(:", r"net.py raised SyntaxError while being imported", SyntaxError),
    ],
    ids=["factory", "import", "syntax"],
)
def test_what_a_file_raises_is_the_cause(tmp_path: Path, text: str, message: str, cause: type[Exception]) -> None:
    with pytest.raises(ModelSourceError, match=message) as caught:
        load(write(tmp_path, text=text) + ":make")
    assert isinstance(caught.value.__cause__, cause)
    assert torch.get_default_dtype() == torch.float32 and str(tmp_path) not in sys.path


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"gone.py: no such file \(a model is named path/to/file.py:factory\)"):
        load(str(tmp_path / "gone.py:make"))


def test_two_files_of_one_name_are_two_models(tmp_path: Path) -> None:
    sizes = []
    for width in (4, 6):
        folder = tmp_path / str(width)
        folder.mkdir()
        text = f"import torch\ndef make(): return torch.nn.Linear({width}, 1), (torch.zeros(1, {width}),)"
        sizes.append(load(write(folder, text=text) + ":make").module.in_features)
    assert sizes == [4, 6]


# --- modules and example inputs ---


def test_a_module_with_example_tensors() -> None:
    model = Stack([Layer(), Layer()])
    graph, seq_len, _ = capture_model(model, seq_len=None, compute_dtype="float32", example_inputs=small.tokens(2, 8))
    assert (graph.name, seq_len, graph.has_sequence) == ("Stack", 8, True)
    expected = small.captured(model, dtype=torch.float32)
    assert graph.blocks == expected.blocks


def test_the_length_of_examples_can_be_overruled_and_a_functions_must_be_given() -> None:
    model = Stack([Layer(), Layer()])
    options: Any = {"compute_dtype": "bfloat16"}
    graph, seq_len, _ = capture_model(model, seq_len=16, example_inputs=small.tokens(2, 8), **options)
    assert (seq_len, graph.fixed_seq_len) == (16, None)
    assert capture_model(model, seq_len=4, example_inputs=small.tokens, **options)[1] == 4
    with pytest.raises(UsageError, match=r"give the sequence length .--seq-len.*inputs of Stack"):
        capture_model(model, seq_len=None, example_inputs=small.tokens, **options)


def test_a_model_without_a_sequence_has_length_one_whatever_is_asked() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    _, seq_len, _ = capture_model(model, seq_len=512, compute_dtype="bfloat16", example_inputs=(torch.zeros(2, 4),))
    assert seq_len == 1


def test_loss_fn_is_passed_on() -> None:
    examples = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
    graph, *_ = capture_model(
        nn.Linear(4, 3), seq_len=1, compute_dtype="float32", example_inputs=examples, loss_fn=nn.CrossEntropyLoss()
    )
    assert graph.warnings == ()
    assert "nll_loss_forward" in {op.name for op in graph.blocks[0].ops}


IDS = torch.zeros(2, 8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("examples", "length", "resized"),
    [
        ((IDS, torch.zeros(2, 8, 16)), 8, [(3, 5), (3, 5, 16)]),
        ((IDS, torch.zeros(2, 7)), 8, [(3, 5), (3, 7)]),
        ((torch.zeros(2, 8),), 1, [(3, 8)]),
        ((IDS, torch.tensor(1.0), torch.zeros(2, dtype=torch.int64)), 8, [(3, 5), (), (3,)]),
        ({"ids": IDS, "flag": True}, 8, [(3, 5)]),
        ([IDS, [IDS]], 8, [(3, 5), (3, 5)]),
    ],
    ids=["same length", "other length", "floats only", "scalars", "dict", "nested list"],
)
def test_example_tensors_are_resized(examples: Any, length: int, resized: list[tuple[int, ...]]) -> None:
    inputs, seq_len = example_function(examples, where="example_inputs")
    made = inputs(3, 5)
    assert seq_len == length and type(made) is type(examples)
    tensors = [t for t in torch.utils._pytree.tree_leaves(made) if isinstance(t, Tensor)]
    assert [tuple(t.shape) for t in tensors] == resized


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (IDS, "example_inputs is Tensor: it must return"),
        (None, "example_inputs is NoneType"),
        (
            (IDS, torch.zeros(2, 4, dtype=torch.int64)),
            r"integer tensors of different lengths \[4, 8\]: give a function",
        ),
    ],
    ids=["a tensor", "nothing", "two lengths"],
)
def test_examples_that_say_too_little_are_refused(examples: Any, message: str) -> None:
    with pytest.raises(ModelSourceError, match=message):
        load(Stack([Layer()]), example_inputs=examples)
