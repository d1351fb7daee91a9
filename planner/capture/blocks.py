"""Which modules repeat, and which of their calls are the same block.

A *block* is a direct child of an outermost container (`ModuleList`, `ModuleDict`, `Sequential`) that holds two or more
modules. Two blocks are equal when everything that their forward may read is equal: class, parameters and buffers
(shape, dtype), submodules and plain attributes; and, call by call, the shapes and dtypes of their inputs. Attributes
that merely count the block's position (``layer_idx``) are told apart from structure by comparing all siblings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
MODULE_STATE = frozenset(nn.Module().__dict__)
"""Attributes that every `nn.Module` has for its own machinery."""


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """FQN -> module of all blocks, in registration order. A module that stands twice is listed under its first FQN."""
    blocks: dict[str, nn.Module] = {}

    def visit(module: nn.Module, fqn: str) -> None:
        for name, child in module.named_children():
            path = f"{fqn}.{name}" if fqn else name
            if isinstance(module, CONTAINERS) and len(module) > 1:
                if any(True for _ in child.parameters()):
                    blocks.setdefault(path, child)
            else:
                visit(child, path)

    visit(model, "")
    return blocks


def structure_keys(blocks: Mapping[str, nn.Module]) -> dict[str, Hashable]:
    """FQN -> key that is equal exactly for blocks of equal structure."""
    attributes = {fqn: _attributes(block) for fqn, block in blocks.items()}
    siblings: dict[tuple[str, type], list[str]] = {}
    for fqn, block in blocks.items():
        siblings.setdefault((fqn.rpartition(".")[0], type(block)), []).append(fqn)
    positions: dict[str, set[str]] = {}
    for members in siblings.values():
        counting = _position_attributes([(fqn.rpartition(".")[2], attributes[fqn]) for fqn in members])
        positions.update(dict.fromkeys(members, counting))
    return {
        fqn: tuple((path, value) for path, value in attributes[fqn].items() if path not in positions[fqn])
        for fqn in blocks
    }


def call_key(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """What a block's operations can depend on in one call: shapes, dtypes, strides and the plain arguments."""
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    return str(spec), tuple(_describe(leaf) for leaf in leaves)


def _position_attributes(members: list[tuple[str, dict[str, Hashable]]]) -> set[str]:
    """Attribute paths whose value is an int that runs with the block's index: ``value - index`` equal for all
    siblings."""
    if len(members) < 2 or not all(name.isdigit() for name, _ in members):
        return set()
    found = set()
    for path in members[0][1]:
        values = [(int(name), attributes.get(path)) for name, attributes in members]
        numbers = [(index, v) for index, v in values if type(v) is int]
        if len(numbers) == len(members) and len({v - index for index, v in numbers}) == 1:
            found.add(path)
    return found


def _attributes(module: nn.Module) -> dict[str, Hashable]:
    """Dotted path -> comparable value of everything that hangs on a module."""
    found: dict[str, Hashable] = {}
    for fqn, sub in module.named_modules():
        found[f"{fqn}:type"] = _describe(type(sub))
        for name, value in sub.__dict__.items():
            if name not in MODULE_STATE:
                found[f"{fqn}.{name}"] = _describe(value)
        found[f"{fqn}:training"] = sub.training
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        found[f"{name}:tensor"] = _describe(tensor)
    return found


def _describe(value: Any) -> Hashable:
    """A comparable stand-in: tensors by shape, plain data by value, anything else by identity (never wrongly equal)."""
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), value.stride(), str(value.dtype), value.requires_grad)
    if isinstance(value, int | float | str | bool | bytes | None | torch.dtype | type):
        return value
    if isinstance(value, tuple | list):
        return (type(value), tuple(_describe(v) for v in value))
    if isinstance(value, dict):
        return (dict, tuple((_describe(k), _describe(v)) for k, v in value.items()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (type(value), tuple(_describe(getattr(value, f.name)) for f in dataclasses.fields(value)))
    return ("object", id(value))
