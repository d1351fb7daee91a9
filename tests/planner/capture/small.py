"""Hand-written models as users write them: an embedding, a stack of layers, an output and a loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.capture.segments import RawModel
from planner.capture.trace import trace
from planner.graph import Block, ModelGraph, Segment

DIM, VOCAB, SEQ_LEN = 16, 32, 8


def tokens(batch: int, seq_len: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels."""
    return torch.zeros(batch, seq_len, dtype=torch.int64), torch.zeros(batch, seq_len, dtype=torch.int64)


def captured(model: nn.Module, *, inputs: Any = tokens, seq_len: int = SEQ_LEN, **options: Any) -> ModelGraph:
    return trace(model, inputs, seq_len=seq_len, **options)


class Layer(nn.Module):
    """x + gelu(a x)."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.a = nn.Linear(dim, dim)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x + F.gelu(self.a(x))


class Stack(nn.Module):
    """Token ids and labels -> cross-entropy; ``body`` is what differs."""

    def __init__(self, layers: Iterable[nn.Module] = (), *, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(layers)
        self.output = nn.Linear(DIM, VOCAB, bias=False)
        if tied:
            self.output.weight = self.embedding.weight

    def body(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def logits(self, ids: Tensor) -> Tensor:
        return self.output(self.body(self.embedding(ids)))

    def forward(self, ids: Tensor, labels: Tensor) -> Any:
        return F.cross_entropy(self.logits(ids).flatten(0, 1).float(), labels.flatten())


class FrozenStack(Stack):
    """Its embedding is not trained, so that the first layer's input needs no gradient."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__(layers)
        self.embedding.requires_grad_(False)


class SelfAttention(Stack):
    """Attention modules as the layers, handed the same tensor three times."""

    def body(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x, x, x, need_weights=False)[0]
        return x


class Skips(Stack):
    """The embedding and the first of three layers' results are read again at the end."""

    def body(self, x: Tensor) -> Tensor:
        first = self.layers[0](x)
        third = self.layers[2](self.layers[1](first) + 0.5)
        return third * first + x


class Transposed(Stack):
    """Layers work on [sequence, batch, dim]: views stand between them."""

    def body(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x.transpose(0, 1)).transpose(0, 1)
        return x


class Cropped(Stack):
    """The second layer sees half of the sequence: between the layers, only backward has something to do."""

    def body(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        return torch.cat((self.layers[1](x[:, : x.shape[1] // 2]), x[:, x.shape[1] // 2 :]), dim=1)


class SharedParameter(Stack):
    """A parameter of the model's own is an argument of every layer."""

    class Scaled(Layer):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return x + self.a(x) * scale

    def __init__(self, num_layers: int) -> None:
        super().__init__(self.Scaled() for _ in range(num_layers))
        self.scale = nn.Parameter(torch.zeros(DIM))

    def body(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, self.scale)
        return x


class Twice(Stack):
    """The same layers run twice; they also stand in a second list."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__(layers)
        self.again = nn.ModuleList(self.layers)

    def body(self, x: Tensor) -> Tensor:
        for layer in (*self.layers, *self.again):
            x = layer(x)
        return x


class Pairs(Stack):
    """A list of pairs: ``for first, second in self.layers``."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(nn.ModuleList([Layer(), Layer()]) for _ in range(num_layers))

    def body(self, x: Tensor) -> Tensor:
        for first, second in self.layers:
            x = second(first(x))
        return x


def block_of(graph: ModelGraph | RawModel, prefix: str) -> Block:
    return graph.blocks[next(segment.block for segment in graph.segments if segment.prefix == prefix)]


def stretches(graph: ModelGraph | RawModel) -> list[tuple[Segment, Block]]:
    """The segments between blocks."""
    return [(segment, graph.blocks[segment.block]) for segment in graph.segments if not segment.prefix]


def targets(block: Block, phase: str) -> list[str]:
    return [op.name for op in block.ops if op.phase == phase]
