"""Leave a model as it was, whatever running it sets on its modules."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Undo at the end whatever is set on the model's modules: modes, replaced methods, tensors kept between calls."""
    kept = []
    for module in model.modules():
        mutable = [v for v in module.__dict__.values() if type(v) in (dict, list, set, OrderedDict)]
        kept.append((module, dict(module.__dict__), [(v, v.copy()) for v in mutable]))
    try:
        yield
    finally:
        for module, attributes, contents in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for holder, content in contents:
                holder.clear()
                (holder.extend if isinstance(holder, list) else holder.update)(content)


@contextlib.contextmanager
def replaced_forwards(
    model: nn.Module, blocks: Mapping[str, nn.Module], make: Callable[[str, nn.Module], Any]
) -> Iterator[None]:
    """Give every block another ``forward`` for the time of the context; the model is left `unchanged`."""
    with unchanged(model):
        for fqn, block in blocks.items():
            block.__dict__["forward"] = make(fqn, block)
        yield
