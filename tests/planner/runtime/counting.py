"""Collectives that a rank issues."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

NAMES = {
    "all_gather_into_tensor": "all_gather", "reduce_scatter_tensor": "reduce_scatter", "all_reduce": "all_reduce",
    "all_to_all_single": "all_to_all",
}  # fmt: skip


class Counting(TorchDispatchMode):
    """Kinds of collectives with the bytes of what goes in, or of an all-gather's result."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "_c10d_functional" and name != "wait_tensor":
            counted = result if name == "all_gather_into_tensor" else args[0]
            self.seen.append((NAMES[name], counted.numel() * counted.element_size()))
        return result
