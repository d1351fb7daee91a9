"""Checkpoints by ``torch.distributed.checkpoint`` that any plan of the same model can begin from.

Every tensor is stored as boxes of the whole one under its name, whoever held them: other axes, another number of ranks
or a single process read what they need of it. A tied parameter is stored under each of its names, its optimizer states
under the first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import _create_read_items, create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from planner.errors import CheckpointError, OutputExistsError
from planner.runtime.boxes import Boxes, Experts
from planner.runtime.placement import holders_of

STATE = "optimizer."
GROUPS = "optimizer groups"
SHOWN = 3

Entries = dict[str, Any]


def save(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, path: str | Path, *, overwrite: bool = False
) -> None:
    """Write a model's parameters and buffers, and its optimizer's states; every rank must call it.

    Raises:
        OutputExistsError: there is a checkpoint already.
    """
    path = Path(path)
    if _on_first((path / ".metadata").exists) and not overwrite:
        raise OutputExistsError(f"{path} holds a checkpoint already: choose another directory, or say overwrite=True.")
    entries: Entries = dict(_of_model(model))
    if optimizer is not None:
        for fqn, param in _trained(model, optimizer):
            for name, value in optimizer.state.get(param, {}).items():
                boxes = Boxes.of(value, _experts(model, fqn)) if isinstance(value, Tensor) else value
                entries[f"{STATE}{fqn}.{name}"] = boxes
        entries[GROUPS] = _options(optimizer)
    with _quiet_alone():
        dcp_save(entries, checkpoint_id=path, planner=_Saving(flatten_state_dict=False))


def load(model: nn.Module, optimizer: torch.optim.Optimizer | None, path: str | Path) -> None:
    """Read what `save` has written into a model and an optimizer over its parameters; every rank must call it.

    Raises:
        CheckpointError: none there, or one of another model; nothing has been changed then.
    """
    path = Path(path)
    try:
        metadata = FileSystemReader(path).read_metadata()
    except (OSError, RuntimeError) as cause:
        raise CheckpointError(f"{path} holds no checkpoint: {cause}") from cause
    entries: Entries = dict(_of_model(model))
    _compare(entries, metadata, model, path)
    states: list[tuple[nn.Parameter, str, str]] = []
    experts: dict[str, Experts | None] = {}
    if optimizer is not None:
        for fqn, param in _trained(model, optimizer):
            prefix = f"{STATE}{fqn}."
            for key in metadata.state_dict_metadata:
                if key.startswith(prefix) and "." not in (name := key.removeprefix(prefix)):
                    experts[key] = _experts(model, fqn)
                    whole = Boxes.of(param, experts[key]).whole
                    entries[key] = _state(optimizer, param, name, metadata.state_dict_metadata[key], whole)
                    states.append((param, name, key))
        if GROUPS in metadata.state_dict_metadata:
            entries[GROUPS] = _options(optimizer)
    tensors = {key: entry.tensor for key, entry in entries.items() if isinstance(entry, _State)}
    for key, tensor in tensors.items():
        entries[key] = Boxes.of(tensor, experts[key])
    with torch.no_grad(), _quiet_alone():
        dcp_load(entries, checkpoint_id=path, planner=_Loading(flatten_state_dict=False))
    if optimizer is not None:
        for param, name, key in states:
            optimizer.state[param][name] = tensors.get(key, entries[key])
        for group, options in zip(optimizer.param_groups, entries.get(GROUPS, ()), strict=False):
            group.update(options)


class _Saving(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Any:
        entry = self.state_dict[index.fqn]
        return entry.at(index) if isinstance(entry, Boxes) else entry


class _Loading(DefaultLoadPlanner):
    def set_up_planner(
        self, state_dict: Entries, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Without looking for tensors to allocate, which forgets what is none."""
        self.state_dict = self.original_state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        items: list[ReadItem] = []
        for key, entry in self.state_dict.items():
            stored = self.metadata.state_dict_metadata[key]  # type: ignore[union-attr]
            if isinstance(entry, Boxes) and isinstance(stored, TensorStorageMetadata):
                boxes = [chunk for chunk, _ in entry.chunks()]
                items += create_read_items_for_chunk_list(key, stored, boxes)
            else:
                items += _create_read_items(key, stored, entry)
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        entry: Boxes = self.state_dict[index.fqn]
        return entry.at(index)


class _State:
    """A tensor that an optimizer is to hold."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _of_model(model: nn.Module) -> Iterator[tuple[str, Boxes]]:
    """Parameters under each of their names; buffers that are the model's state and are kept up on this rank."""
    for fqn, param in nn.Module.named_parameters(model, remove_duplicate=False):
        yield fqn, Boxes.of(param, _experts(model, fqn))
    placement = getattr(getattr(model, "_parallel", None), "placement", None)
    stale: set[str] = placement.stale if placement is not None else set()
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            fqn = f"{prefix}.{name}" if prefix else name
            if buffer is not None and name not in module._non_persistent_buffers_set and fqn not in stale:
                yield fqn, Boxes.of(buffer)


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    """Parameters of an optimizer under the first of their names in the whole model."""
    placement = getattr(getattr(model, "_parallel", None), "placement", None)
    names: Mapping[str, tuple[str, ...]] = placement.names if placement is not None else {}
    first = {name: fqn for fqn, found in names.items() for name in found}
    ours = {id(param) for group in optimizer.param_groups for param in group["params"]}
    return [(first.get(fqn, fqn), param) for fqn, param in model.named_parameters() if id(param) in ours]


def _experts(model: nn.Module, fqn: str) -> Experts | None:
    """Which experts of a parameter this rank holds, where its plan places them one by one."""
    placement = getattr(getattr(model, "_parallel", None), "placement", None)
    if placement is None or fqn not in placement.rows:
        return None
    return Experts(len(holders_of(placement.plan, fqn)), placement.rows[fqn])


def _options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _state(optimizer: torch.optim.Optimizer, param: nn.Parameter, name: str, stored: Any, whole: torch.Size) -> Any:
    """What a stored state is read into."""
    if not isinstance(stored, TensorStorageMetadata):
        return None
    there = optimizer.state.get(param, {}).get(name)
    if isinstance(there, Tensor):
        return _State(there)
    if stored.size == whole and stored.size:
        return _State(torch.zeros_like(param, requires_grad=False))
    group = next(g for g in optimizer.param_groups if any(p is param for p in g["params"]))
    device = param.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
    return _State(torch.zeros(stored.size, dtype=stored.properties.dtype, device=device))


def _compare(entries: Entries, metadata: Metadata, model: nn.Module, path: Path) -> None:
    stored = {
        key: tuple(entry.size)
        for key, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and not key.startswith(STATE)
    }
    wanted = {key: tuple(entry.whole) for key, entry in entries.items()}
    everywhere: list[Any] = [wanted]
    if dist.is_initialized() and dist.get_world_size() > 1:
        everywhere = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, wanted)
    asked: dict[str, tuple[int, ...]] = {key: shape for rank in everywhere for key, shape in rank.items()}
    missing = [key for key in asked if key not in stored]
    extra = [key for key in stored if key not in asked]
    other = [
        f"{key} {list(stored[key])}, not {list(asked[key])}"
        for key in asked
        if stored.get(key, asked[key]) != asked[key]
    ]
    if missing or extra or other:
        raise CheckpointError(
            f"{path} is of another model than {type(model).__name__}: only in the model {_first(missing)}; only in the "
            f"checkpoint {_first(extra)}; of other shapes {_first(other)}. Nothing was changed."
        )


def _first(names: list[str]) -> str:
    return (", ".join(names[:SHOWN]) or "none") + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


@contextmanager
def _quiet_alone() -> Iterator[None]:
    """torch warns that a single process is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to (save|load) in a single process.*")
        yield


def _on_first(question: Callable[[], bool]) -> bool:
    """The first rank's answer: others may see the file system later."""
    answer = [question()]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(answer)
    return answer[0]
