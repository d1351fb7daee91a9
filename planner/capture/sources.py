"""The ways to name a model: a built-in, ``path/to/file.py:factory``, ``hf:path/to/config.json``, or an `nn.Module`.

All are built on ``meta`` in the compute precision: no weights, no downloads.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from planner import models
from planner.capture.trace import Inputs, trace
from planner.errors import ModelSourceError, UnknownNameError, UsageError
from planner.graph import ModelGraph

CONTRACT = (
    "it must return (module, inputs), where inputs is a tuple or dict of example tensors, or a function "
    "inputs(batch, seq_len) that returns one"
)


@dataclass(frozen=True)
class ModelSource:
    """A model ready to be traced."""

    name: str
    module: nn.Module
    inputs: Inputs
    seq_len: int | None
    """Sequence length where the user gives none; ``None`` when only the user can know."""


def capture_model(
    model: str | nn.Module,
    *,
    seq_len: int | None,
    compute_dtype: str,
    example_inputs: Any = None,
    loss_fn: Callable[..., torch.Tensor] | None = None,
) -> tuple[ModelGraph, int, str]:
    """Find, build and trace a model: its graph, its sequence length (1 for a model without one), torch's version.

    Args:
        seq_len: default the model's own.
        compute_dtype: torch dtype name.
    Raises:
        UsageError: only the user can know the sequence length.
        UnknownNameError, ModelSourceError, TraceError: see `load_model` and `planner.capture.trace.trace`.
    """
    dtype: torch.dtype = getattr(torch, compute_dtype)
    source = load_model(model, dtype=dtype, example_inputs=example_inputs)
    seq_len = source.seq_len if seq_len is None else seq_len
    if seq_len is None:
        raise UsageError(
            "give the sequence length (--seq-len, or seq_len in Python; 1 if it has none): the inputs of "
            f"{source.name} are a function of it."
        )
    graph = trace(source.module, source.inputs, name=source.name, seq_len=seq_len, dtype=dtype, loss_fn=loss_fn)
    return graph, seq_len if graph.has_sequence else 1, torch.__version__.partition("+")[0]


def load_model(model: str | nn.Module, *, dtype: torch.dtype, example_inputs: Any = None) -> ModelSource:
    """Find and build a model.

    Args:
        model: a name (see the module docstring) or a module, on any device.
        example_inputs: for a module: tuple or dict of example tensors, or ``inputs(batch, seq_len)``.
    Raises:
        UnknownNameError: no built-in of that name.
        ModelSourceError: a file, factory or config that gives no model; the factory's own error is its cause.
    """
    if isinstance(model, nn.Module):
        inputs, seq_len = example_function(example_inputs, where="example_inputs")
        return ModelSource(type(model).__name__, model, inputs, seq_len)
    if model.startswith("hf:"):
        return _from_hf_config(Path(model.removeprefix("hf:")), dtype)
    if ".py:" in model or model.endswith(".py"):
        path, _, factory = model.partition(".py:")
        return _from_file(Path(f"{path}.py" if factory else model), factory, dtype)
    if model not in models.names():
        raise UnknownNameError("model", model, models.names())
    with _Building(dtype):
        module, inputs = models.build(model)
    return ModelSource(model, module, inputs, models.preset(model).seq_len)


def example_function(examples: Any, *, where: str) -> tuple[Inputs, int | None]:
    """``inputs(batch, seq_len)`` and the default length, from a function or from example tensors.

    In example tensors dim 0 is the batch; dim 1 of integer tensors is the sequence, and so is every other dim 1 of
    that size.
    """
    if callable(examples):
        return examples, None
    if not isinstance(examples, tuple | list | dict):
        raise ModelSourceError(f"{where} is {type(examples).__name__}: {CONTRACT}.")
    tensors = [leaf for leaf in pytree.tree_leaves(examples) if isinstance(leaf, torch.Tensor)]
    lengths = {t.shape[1] for t in tensors if t.dim() > 1 and not t.is_floating_point()}
    if len(lengths) > 1:
        raise ModelSourceError(
            f"{where} has integer tensors of different lengths {sorted(lengths)}: give a function "
            "inputs(batch, seq_len)."
        )
    length = next(iter(lengths), None)

    def inputs(batch: int, seq_len: int) -> Any:
        def resize(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dim() == 0:
                return tensor
            rest = tuple(tensor.shape[1:])
            if length is not None and tensor.dim() > 1 and tensor.shape[1] == length:
                rest = (seq_len, *rest[1:])
            return torch.empty((batch, *rest), dtype=tensor.dtype, device="meta")

        return pytree.tree_map_only(torch.Tensor, resize, examples)

    return inputs, length if length is not None else 1


class _Building:
    """Default device ``meta`` and default dtype the compute precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        self.device = torch.device("meta")
        self.device.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self.device.__exit__(*exc)
        torch.set_default_dtype(self.before)


def _from_file(path: Path, name: str, dtype: torch.dtype) -> ModelSource:
    module = _import_file(path)
    functions = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
    if not name:
        raise ModelSourceError(
            f"{path}: name the factory, {path}:NAME. It has: {', '.join(functions) or 'no function'}."
        )
    factory = getattr(module, name, None)
    if factory is None:
        raise UnknownNameError(f"factory in {path}", name, functions)
    try:
        with _Building(dtype):
            made = factory()
    except Exception as cause:
        raise ModelSourceError(
            f"{path}:{name}() raised {type(cause).__name__} while building on the meta device; {CONTRACT}."
        ) from cause
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise ModelSourceError(f"{path}:{name}() returned {_kind(made)}: {CONTRACT}.")
    inputs, seq_len = example_function(made[1], where=f"inputs of {path}:{name}()")
    return ModelSource(f"{path.name}:{name}", made[0], inputs, seq_len)


def _kind(value: Any) -> str:
    return f"({', '.join(type(v).__name__ for v in value)})" if isinstance(value, tuple) else type(value).__name__


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelSourceError(f"{path}: no such file (a model is named path/to/file.py:factory).")
    name = f"meshwright_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as cause:
        raise ModelSourceError(f"{path} raised {type(cause).__name__} while being imported.") from cause
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _from_hf_config(path: Path, dtype: torch.dtype) -> ModelSource:
    """A transformers model from its ``config.json``; never from the hub.

    Where the architecture has them, transformers itself takes torch's fused attention and grouped matrix products for
    experts.
    """
    try:
        import transformers
    except ImportError:
        raise ModelSourceError("models named hf:... need transformers: pip install 'meshwright[hf]'.") from None
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ModelSourceError(f"{path}: no such file (hf:path/to/config.json, or the folder that holds it).")
    try:
        fields = json.loads(path.read_text())
    except json.JSONDecodeError as cause:
        raise ModelSourceError(f"{path}:{cause.lineno}: not JSON: {cause.msg}.") from None
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ModelSourceError(f"{path}: field 'model_type' is missing; it names the architecture, e.g. 'llama'.")
    try:
        config = transformers.AutoConfig.for_model(**fields)
    except Exception as cause:
        raise ModelSourceError(f"{path}: transformers {transformers.__version__} refuses it: {cause}") from cause
    config.use_cache = False
    architecture = next(iter(fields.get("architectures") or ()), None)
    factory = getattr(transformers, architecture, None) if architecture else None
    try:
        with _Building(dtype):
            module = factory(config) if factory else transformers.AutoModelForCausalLM.from_config(config)
    except Exception as cause:
        raise ModelSourceError(
            f"{path}: {architecture or 'the causal language model'} of transformers {transformers.__version__} raised "
            f"{type(cause).__name__} while building on the meta device."
        ) from cause
    return ModelSource(f"{path.parent.name or path.stem}", module, *_hf_inputs(config, module))


def _hf_inputs(config: Any, module: nn.Module) -> tuple[Callable[[int, int], dict[str, torch.Tensor]], int]:
    """Inputs with labels, so that the model returns its own loss; and the default sequence length."""
    if module.main_input_name == "pixel_values":
        size, channels = config.image_size, config.num_channels

        def images(batch: int, seq_len: int) -> dict[str, torch.Tensor]:
            return {
                "pixel_values": torch.empty(batch, channels, size, size, device="meta"),
                "labels": torch.empty(batch, dtype=torch.int64, device="meta"),
            }

        return images, 1

    def tokens(batch: int, seq_len: int) -> dict[str, torch.Tensor]:
        ids = torch.empty(batch, seq_len, dtype=torch.int64, device="meta")
        return {"input_ids": ids, "labels": torch.empty_like(ids)}

    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return tokens, min(longest or DEFAULT_SEQ_LEN, DEFAULT_SEQ_LEN)


DEFAULT_SEQ_LEN = 4096
"""For models whose config allows any length."""
