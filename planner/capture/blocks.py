"""Which modules repeat, and which of their calls are the same block.

A *block* is a direct child of an outermost container (`ModuleList`, `ModuleDict`, `Sequential`) that holds two or more
modules. Lists within lists (``for attention, mlp in self.layers``) are opened, and a `ModuleDict` of unlike parts
merely names them. Two blocks are equal when everything that their forward may read is equal: class, parameters and
buffers (shape, dtype), submodules and plain attributes; and, call by call, the shapes and dtypes of their inputs.
Attributes that merely count the block's position (``layer_idx``) are left out unless forward reads them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import types
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
MODULE_STATE = frozenset(nn.Module().__dict__)
"""Attributes that every `nn.Module` has for its own machinery."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
BY_VALUE = (
    int, float, complex, str, bool, bytes, type(None), type, enum.Enum, range, torch.dtype, torch.device, torch.layout,
    torch.memory_format,
)  # fmt: skip


class _Plain:
    """As large as any pure Python object whose attributes are all in its ``__dict__``."""


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """FQN -> module of all blocks, in registration order. A module that stands twice is listed under its first FQN."""
    blocks: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def visit(module: nn.Module, fqn: str, repeated: bool) -> None:
        for name, child in module.named_children():
            path = f"{fqn}.{name}" if fqn else name
            if not repeated or type(child).forward is nn.Module.forward:
                visit(child, path, repeated or _repeats(child))
            elif id(child) not in seen and any(True for _ in child.parameters()):
                seen.add(id(child))
                blocks[path] = child

    visit(model, "", _repeats(model))
    return blocks


def _repeats(module: nn.Module) -> bool:
    """Whether a module is a container of blocks."""
    if not isinstance(module, CONTAINERS) or len(module) < 2:
        return False
    return not isinstance(module, nn.ModuleDict) or len({type(child) for child in module.values()}) == 1


def structure_keys(
    blocks: Mapping[str, nn.Module], positions: Mapping[str, frozenset[str]] | None = None
) -> dict[str, Hashable]:
    """FQN -> key that is equal exactly for blocks of equal structure.

    Args:
        positions: per block the attributes to leave out; default `position_attributes`.
    """
    positions = position_attributes(blocks) if positions is None else positions
    return {
        fqn: tuple((path, value) for path, value in _attributes(block).items() if path not in positions[fqn])
        for fqn, block in blocks.items()
    }


def position_attributes(blocks: Mapping[str, nn.Module]) -> dict[str, frozenset[str]]:
    """Per block, the dotted paths of the attributes that count its position among its siblings."""
    siblings: dict[tuple[str, type], list[str]] = {}
    for fqn, block in blocks.items():
        siblings.setdefault((fqn.rpartition(".")[0], type(block)), []).append(fqn)
    positions: dict[str, frozenset[str]] = {}
    for members in siblings.values():
        counting = _counting([(fqn.rpartition(".")[2], _attributes(blocks[fqn])) for fqn in members])
        positions.update(dict.fromkeys(members, counting))
    return positions


@contextlib.contextmanager
def watched(blocks: Mapping[str, nn.Module], positions: Mapping[str, frozenset[str]]) -> Iterator[set[str]]:
    """Collect the position attributes that are read while the context lasts.

    Each module that has one gets, for that time, a subclass of its class in which the attribute is a property.
    """
    read: set[str] = set()
    classes: list[tuple[nn.Module, type]] = []
    for fqn, block in blocks.items():
        for path in sorted(positions[fqn]):
            owner, _, name = path.rpartition(".")
            module = block.get_submodule(owner)
            kind = type(module)
            classes.append((module, kind))
            module.__class__ = type(kind.__name__, (kind,), {name: _noting(path, name, read)})
    try:
        yield read
    finally:
        for module, kind in reversed(classes):
            module.__class__ = kind


def _noting(path: str, name: str, read: set[str]) -> property:
    def get(module: nn.Module) -> Any:
        read.add(path)
        return module.__dict__[name]

    def put(module: nn.Module, value: Any) -> None:
        module.__dict__[name] = value

    return property(get, put)


def call_key(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """What a block's operations can depend on in one call: its tensors' shapes, dtypes, strides and which of them are
    the same, the plain arguments, and the modes of autograd and autocast."""
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    first = {id(leaf): i for i, leaf in reversed(list(enumerate(leaves)))}
    same = tuple(first[id(leaf)] for leaf in leaves if isinstance(leaf, torch.Tensor))
    modes = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return str(spec), tuple(_describe(leaf) for leaf in leaves), same, modes


def hides_tensors(leaf: Any, above: tuple[int, ...] = ()) -> bool:
    """Whether an argument that pytree does not open (a dataclass, an object) holds tensors."""
    if isinstance(leaf, (torch.Tensor, nn.Module, *BY_VALUE)) or callable(leaf) or id(leaf) in above:
        return False
    fields = dict(vars(leaf)) if hasattr(leaf, "__dict__") else {}
    if dataclasses.is_dataclass(leaf):
        fields |= {field.name: getattr(leaf, field.name) for field in dataclasses.fields(leaf)}
    return any(
        isinstance(value, torch.Tensor) or hides_tensors(value, (*above, id(leaf)))
        for value in pytree.tree_leaves(list(fields.values()))
    )


def _counting(members: list[tuple[str, dict[str, Hashable]]]) -> frozenset[str]:
    """Attribute paths whose value is an int that runs with the block's index: ``value - index`` equal for all
    siblings."""
    if len(members) < 2 or not all(name.isdigit() for name, _ in members):
        return frozenset()
    found = set()
    for path in members[0][1]:
        values = [(int(name), attributes.get(path)) for name, attributes in members]
        numbers = [(index, v) for index, v in values if type(v) is int]
        if len(numbers) == len(members) and len({v - index for index, v in numbers}) == 1:
            found.add(path)
    return frozenset(found)


def _attributes(module: nn.Module) -> dict[str, Hashable]:
    """Dotted path -> comparable value of everything that hangs on a module."""
    found: dict[str, Hashable] = {}
    for fqn, sub in module.named_modules():
        found[f"{fqn}:type"] = _describe(type(sub))
        for name, value in sub.__dict__.items():
            if name not in MODULE_STATE:
                found[f"{fqn}.{name}"] = _describe(value)
        found[f"{fqn}:training"] = sub.training
        found[f"{fqn}:hooks"] = tuple(_describe(hook) for name in HOOKS for hook in getattr(sub, name).values())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        found[f"{name}:tensor"] = _describe(tensor)
    return found


def _describe(value: Any, above: tuple[int, ...] = ()) -> Hashable:
    """A comparable stand-in: tensors by shape, plain data and plain objects by value, anything else by identity (so
    that nothing is wrongly equal)."""
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), value.stride(), str(value.dtype), value.requires_grad)
    if isinstance(value, BY_VALUE):
        return value
    if id(value) in above:
        return ("above", above.index(id(value)))
    describe = functools.partial(_describe, above=(*above, id(value)))
    if isinstance(value, tuple | list):
        return (type(value), tuple(describe(v) for v in value))
    if isinstance(value, set | frozenset):
        return (type(value), frozenset(describe(v) for v in value))
    if isinstance(value, dict):
        return (dict, tuple((describe(k), describe(v)) for k, v in value.items()))
    if isinstance(value, slice):
        return (slice, value.start, value.stop, value.step)
    if isinstance(value, functools.partial):
        return (functools.partial, describe(value.func), describe(value.args), describe(value.keywords))
    if isinstance(value, types.FunctionType):
        cells = tuple(describe(_contents(cell)) for cell in value.__closure__ or ())
        return (value.__code__, describe(value.__defaults__), describe(value.__kwdefaults__), cells)
    if dataclasses.is_dataclass(value):
        return (type(value), tuple(describe(getattr(value, f.name)) for f in dataclasses.fields(value)))
    if _is_plain(type(value)):
        return (type(value), describe(vars(value)))
    return ("object", id(value))


def _is_plain(kind: type) -> bool:
    """Whether all that instances hold is in their ``__dict__``."""
    return kind.__basicsize__ == _Plain.__basicsize__ and not any("__slots__" in vars(base) for base in kind.__mro__)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def uses_foreign_modules(block: nn.Module) -> bool:
    """Whether a block holds, in a plain attribute, a module that is not registered inside of it."""
    own = {id(module) for module in block.modules()}
    plain = [v for m in block.modules() for name, v in m.__dict__.items() if name not in MODULE_STATE]
    found = [leaf for value in plain for leaf in pytree.tree_leaves(value) if isinstance(leaf, nn.Module)]
    return any(id(module) not in own for module in found)
