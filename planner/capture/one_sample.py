"""Programs of one sample, from those of two and three.

Of one sample torch leaves out what has nothing to do: expanding it to the batch, copying what is contiguous by then.
But a plan needs one program for every microbatch. Sizes are linear in the number of samples, so that those at one are
as far below those at two as these are below those at three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from planner.errors import TraceError


def one_sample(two: Any, three: Any) -> Any:
    """What a program of two samples is of one: every whole number in it by its distance to that of three.

    Args:
        two, three: dataclasses, mappings and sequences of the same build.
    Raises:
        TraceError: something else than sizes differs between the two.
    """
    if isinstance(two, torch.Tensor) and isinstance(three, torch.Tensor) and two.shape == three.shape:
        return two
    if is_dataclass(two) and type(two) is type(three) and not isinstance(two, type):
        changed = {f.name: one_sample(getattr(two, f.name), getattr(three, f.name)) for f in fields(two)}
        return replace(two, **changed)
    if isinstance(two, Mapping) and isinstance(three, Mapping) and two.keys() == three.keys():
        return {key: one_sample(value, three[key]) for key, value in two.items()}
    if isinstance(two, tuple | list) and type(two) is type(three) and len(two) == len(three):
        found = [one_sample(a, b) for a, b in zip(two, three, strict=True)]
        return type(two)(*found) if hasattr(two, "_fields") else type(two)(found)
    if type(two) is int and type(three) is int:
        return 2 * two - three
    if isinstance(two, torch.Tensor) or two != three:
        raise TraceError(
            f"the model's operations change with the number of samples: {two} with two of them, {three} with three. A "
            "plan needs one program for every microbatch; remove the branch on the batch size, or pad."
        )
    return two
