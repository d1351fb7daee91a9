"""Graphs of the decoder families at any size from one trace per structure.

Two decoders that differ in sizes alone (layers, widths, heads, experts, ...) run the same program. So a structure is
traced once, with one layer of each kind, at *reference sizes* so generic that every number in the graph says which
product of sizes it is; the graph of any other configuration is that one with its numbers computed anew and its layers
repeated. It equals what `planner.capture.trace.trace` gives for that configuration.

A number that is no product of the sizes known here, or two different ones, stops the reading: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import combinations, groupby
from math import inf, prod
from typing import Any

import torch

from planner.capture.trace import trace
from planner.graph import Arg, Block, Dim, ModelGraph, Op, Parameter, Ref, Segment, Value
from planner.models import DenseDecoderConfig, MoEDecoderConfig, build_from_config

DecoderConfig = DenseDecoderConfig | MoEDecoderConfig

GRAPHS_KEPT = 256
"""A graph holds some hundred kilobytes."""


@lru_cache(maxsize=GRAPHS_KEPT)
def family_graph(
    config: DecoderConfig, *, name: str = "model", seq_len: int | None = None, compute_dtype: str = "bfloat16"
) -> ModelGraph:
    """The graph of a decoder: what `trace` gives for the built model, in milliseconds once its structure is known.

    Args:
        config: a size of 1 belongs to the structure, because a dim of 1 is broadcast and its strides are free.
        name: what the graph is called.
        seq_len: stands in the operations' arguments, where nothing reads it; default the longest of the model. Longer
            ones than that are as good: the graph holds for any.
        compute_dtype: torch dtype name. Mixtures of experts are traced in bfloat16 alone (see `planner.models.moe`).
    Raises:
        AssertionError: a number in the graph of this structure is not recognised as one formula of the sizes, or a part
            of a head is of size 1.
        TraceError: see `planner.capture.trace.trace`.
    """
    template = _template(_reference(config, 0), compute_dtype)
    return template.graph_of(config, name, config.max_seq_len if seq_len is None else seq_len)


# Reference sizes: two for each, the second to tell formulas that are always equal (heads = groups x heads per group)
# from those that only happen to be. All are greater than `_LITERALS`, and grouped products need rows of 16 bytes.
_REFERENCES: Mapping[str, tuple[int, int]] = {
    "vocab_size": (10_007, 10_037),
    "max_seq_len": (5003, 5009),
    "dim": (8 * 127, 8 * 131),
    "num_kv_heads": (11, 13),
    "head_dim": (2 * 97, 2 * 101),
    "hidden_dim": (3001, 3011),
    "expert_hidden_dim": (8 * 89, 8 * 83),
    "shared_hidden_dim": (1511, 1523),
    "top_k": (17, 19),
    "num_groups": (23, 29),
    "top_groups": (13, 17),
    "q_rank": (409, 419),
    "kv_rank": (307, 311),
    "rope_head_dim": (2 * 37, 2 * 41),
    "v_head_dim": (61, 67),
}
_HEADS_PER_GROUP = 31, 37
_EXPERTS_PER_GROUP = 43, 47
_SEQ_LEN = 59, 71
_FLOATS = {"norm_eps": 0.03125, "rope_theta": 10_009.5, "weight_scale": 2.625}
_LITERALS = frozenset((*range(-8, 9), -100, 2**63 - 1))
"""Integers that are no sizes: positions of dims, cut lengths that hold for every model, "ignore" and "to the end"."""
_FLOAT_LITERALS = frozenset((0.0, 1.0, inf, -inf))


def _reference(config: DecoderConfig, which: int) -> DecoderConfig:
    """The structure of ``config``: its reference sizes in place of its own, but for sizes of 0 and 1."""

    def sizes(part: object, names: Iterable[str]) -> dict[str, Any]:
        own = ((name, getattr(part, name, None)) for name in names)
        return {name: _REFERENCES[name][which] if size > 1 else size for name, size in own if size is not None}

    latent = config.latent_attention
    inner = [name for name in _REFERENCES if latent is not None and hasattr(latent, name)]
    changes = sizes(config, [name for name in _REFERENCES if name not in inner])
    changes |= {name: value for name, value in _FLOATS.items() if hasattr(config, name)}
    if latent is not None:
        changes["latent_attention"] = replace(latent, **sizes(latent, inner))
    grouped = config.num_heads > config.num_kv_heads
    changes["num_heads"] = changes["num_kv_heads"] * (_HEADS_PER_GROUP[which] if grouped else 1)
    # Two layers hold both kinds; one alone is no repeated module, so it is a structure of its own.
    changes["num_layers"] = layers = min(config.num_layers, 2)
    if isinstance(config, MoEDecoderConfig):
        all_dense = config.num_dense_layers >= config.num_layers
        changes["num_dense_layers"] = layers if all_dense else min(config.num_dense_layers, 1)
        alone = config.num_experts == config.num_groups
        changes["num_experts"] = changes["num_groups"] * (1 if alone else _EXPERTS_PER_GROUP[which])
    return replace(config, **changes)


def _sizes(config: DecoderConfig, seq_len: int) -> dict[str, int]:
    """What the dims of a decoder are products of. Batches do not count: tracing finds them."""
    sizes = {
        "seq_len": seq_len,
        "vocab_size": config.vocab_size,
        "max_seq_len": config.max_seq_len,
        "dim": config.dim,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "heads_per_group": config.num_heads // config.num_kv_heads,
        "qkv_heads_per_group": config.num_heads // config.num_kv_heads + 2,
        "head_dim": config.head_dim,
        "hidden_dim": config.hidden_dim,
        "half_rope_dim": config.rope_dim // 2,
    }
    if isinstance(config, MoEDecoderConfig):
        sizes |= {
            "num_experts": config.num_experts,
            "top_k": config.top_k,
            "expert_hidden_dim": config.expert_hidden_dim,
            "shared_hidden_dim": config.shared_hidden_dim,
            "num_groups": config.num_groups,
            "experts_per_group": config.num_experts // config.num_groups,
            "top_groups": config.top_groups,
        }
    if latent := config.latent_attention:
        nope = config.head_dim - latent.rope_head_dim
        sizes |= {
            "q_rank": latent.q_rank or 0,
            "kv_rank": latent.kv_rank,
            "rope_head_dim": latent.rope_head_dim,
            "v_head_dim": latent.v_head_dim,
            "nope_head_dim": nope,
            "nope_and_v_head_dim": nope + latent.v_head_dim,
            "kv_rank_and_rope": latent.kv_rank + latent.rope_head_dim,
        }
    return sizes


@dataclass(frozen=True)
class _Formula:
    """``factor`` times the product of the sizes called ``names``."""

    factor: int
    names: tuple[str, ...]

    def of(self, sizes: Mapping[str, int]) -> int:
        return self.factor * prod(sizes[name] for name in self.names)


@dataclass(frozen=True)
class _Template:
    """One structure."""

    reference: DecoderConfig
    """The configuration that was traced."""
    graph: ModelGraph
    formulas: Mapping[int, _Formula]
    """What every number of the graph means."""
    sized: tuple[frozenset[int], ...]
    """Per block: the ops whose arguments hold a size or a constant of the configuration."""

    def graph_of(self, config: DecoderConfig, name: str, seq_len: int) -> ModelGraph:
        return _Writer(self, config, seq_len).graph(name)


@cache
def _template(reference: DecoderConfig, compute_dtype: str) -> _Template:
    dtype: torch.dtype = getattr(torch, compute_dtype)
    with torch.device("meta"):
        model, _ = build_from_config(reference)

    def inputs(batch: int, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.zeros(batch, _SEQ_LEN[0], dtype=torch.int64)
        return tokens, torch.zeros_like(tokens)

    # The length is one more size that numbers are recognised by, so no points are spent on it.
    graph = trace(model, inputs, dtype=dtype)
    assert not graph.warnings, graph.warnings
    numbers = {number for block in graph.blocks for value in block.values for number in _sizes_of(value)}
    numbers |= {number for values in graph.crossings for value in values for number in _sizes_of(value)}
    numbers |= {number for param in graph.params for number in param.shape} | set(graph.resident_bytes)
    numbers |= {n for block in graph.blocks for op in block.ops for n in _numbers(op.args) if isinstance(n, int)}
    formulas = _recognise(numbers - _LITERALS, reference)
    floats = {n for block in graph.blocks for op in block.ops for n in _numbers(op.args) if isinstance(n, float)}
    assert floats <= _FLOAT_LITERALS | set(_FLOATS.values()), f"{floats}: unknown constants in {reference}"
    known = formulas.keys() | set(_FLOATS.values())
    sized = tuple(
        frozenset(i for i, op in enumerate(block.ops) if not known.isdisjoint(_numbers(op.args)))
        for block in graph.blocks
    )
    return _Template(reference, graph, formulas, sized)


def _has_experts(config: DecoderConfig, layer: int) -> bool:
    return isinstance(config, MoEDecoderConfig) and layer >= config.num_dense_layers


def _sizes_of(value: Value) -> Iterator[int]:
    for dim in value.dims:
        assert not dim.slope and dim.const == int(dim.const), value
        yield int(dim.const)


def _numbers(arg: Arg) -> Iterator[int | float]:
    """Numbers in an op's arguments; tensors and flags are none."""
    if isinstance(arg, tuple) and not isinstance(arg, Ref):
        for item in arg:
            yield from _numbers(item)
    elif isinstance(arg, int | float) and not isinstance(arg, bool):
        yield arg


def _recognise(numbers: Iterable[int], reference: DecoderConfig) -> dict[int, _Formula]:
    """The formula of each number: up to three sizes, once, twice (two samples) or four times (bytes of float32)."""
    first, second = (_sizes(_reference(reference, which), _SEQ_LEN[which]) for which in (0, 1))
    names = [name for name, size in first.items() if size > 1]
    meanings: dict[int, dict[int, _Formula]] = {}
    for count in (1, 2, 3):
        for chosen in combinations(names, count):
            for factor in (1, 2, 4):
                formula = _Formula(factor, chosen)
                meanings.setdefault(formula.of(first), {}).setdefault(formula.of(second), formula)
    found: dict[int, _Formula] = {}
    for number in numbers:
        formulas = list(meanings.get(number, {}).values())
        assert len(formulas) == 1, f"{number} may be {formulas or 'no product of sizes'} in {reference}"
        found[number] = formulas[0]
    return found


def _layer_of(fqn: str, prefixes: Iterable[str]) -> str | None:
    return next((prefix for prefix in prefixes if fqn.startswith(f"{prefix}.")), None)


class _Writer:
    """Writes the graph of one configuration over the template of its structure."""

    def __init__(self, template: _Template, config: DecoderConfig, seq_len: int) -> None:
        self.template = template
        self.config = config
        sizes = _sizes(config, seq_len)
        generic = _sizes(template.reference, _SEQ_LEN[0])
        single = [name for name, size in sizes.items() if name != "seq_len" and min(size, 2) != min(generic[name], 2)]
        assert not single, f"{single} would be broadcast in {config}, and are not in its structure"
        self.numbers = {number: formula.of(sizes) for number, formula in template.formulas.items()}
        self.floats = {value: getattr(config, name) for name, value in _FLOATS.items() if hasattr(config, name)}
        self.per_token = {
            number: value // seq_len
            for number, value in self.numbers.items()
            if "seq_len" in template.formulas[number].names
        }
        self.dims: dict[tuple[Dim, ...], tuple[Dim, ...]] = {}

    def graph(self, name: str) -> ModelGraph:
        old = self.template.graph
        layers = self._layers()
        segments: list[Segment] = []
        crossings: list[tuple[Value, ...]] = []
        resident: list[int] = []
        ends = (*old.crossings, ())
        for segment, crossing, size in zip(old.segments, ends, old.resident_bytes, strict=True):
            for prefix in layers.get(segment.prefix, [segment.prefix]):
                segments.append(replace(segment, prefix=prefix, modules=(prefix,)) if prefix else segment)
                crossings.append(tuple(self._value(value) for value in crossing))
                resident.append(self.numbers.get(size, size))
        return ModelGraph(
            name=name,
            blocks=tuple(self._block(*pair) for pair in zip(old.blocks, self.template.sized, strict=True)),
            segments=tuple(segments),
            params=tuple(self._params(layers)),
            aliases=old.aliases,
            crossings=tuple(crossings[:-1]),
            resident_bytes=tuple(resident),
            fixed_seq_len=None,
            has_sequence=True,
            warnings=(),
            inputs=tuple(replace(tensor, shape=("seq_len",)) for tensor in old.inputs),
        )

    def _layers(self) -> dict[str, list[str]]:
        """Prefix of each layer of the template -> prefixes of the layers written like it: none after the first of a
        kind."""
        reference = self.template.reference
        layers: dict[str, list[str]] = {f"layers.{i}": [] for i in range(reference.num_layers)}
        first = {_has_experts(reference, i): f"layers.{i}" for i in reversed(range(reference.num_layers))}
        for i in range(self.config.num_layers):
            layers[first[_has_experts(self.config, i)]].append(f"layers.{i}")
        return layers

    def _params(self, layers: Mapping[str, list[str]]) -> Iterator[Parameter]:
        """In the order of the modules: all of one layer before the next."""
        for layer, group in groupby(self.template.graph.params, lambda param: _layer_of(param.fqn, layers)):
            params = [(p.fqn, tuple(self.numbers.get(n, n) for n in p.shape), p.requires_grad) for p in group]
            for prefix in [""] if layer is None else layers[layer]:
                for fqn, shape, requires_grad in params:
                    yield Parameter(prefix + fqn.removeprefix(layer or ""), shape, requires_grad)

    def _block(self, block: Block, sized: frozenset[int]) -> Block:
        return replace(
            block,
            values=tuple(self._value(value) for value in block.values),
            ops=tuple(self._op(op) if i in sized else op for i, op in enumerate(block.ops)),
        )

    def _value(self, value: Value) -> Value:
        if value.dims not in self.dims:
            self.dims[value.dims] = tuple(self._dim(dim) for dim in value.dims)
        return Value(self.dims[value.dims], value.dtype, value.storage)

    def _dim(self, dim: Dim) -> Dim:
        number = int(dim.const)
        if number in self.per_token:
            return Dim(0, self.per_token[number], dim.per_batch)
        return Dim(self.numbers.get(number, number), 0, dim.per_batch)

    def _op(self, op: Op) -> Op:
        args = self._arg(op.args)
        assert isinstance(args, tuple)
        return Op(op.target, op.fqn, op.phase, args, op.inputs, op.outputs, op.pointwise)

    def _arg(self, arg: Arg) -> Arg:
        if isinstance(arg, Ref | bool | str) or arg is None:
            return arg
        if isinstance(arg, tuple):
            return tuple(self._arg(item) for item in arg)
        return self.numbers.get(arg, arg) if isinstance(arg, int) else self.floats.get(arg, arg)
