"""Batches to train on: made up, or from a file of tokens. Every rank reads its own samples only.

Which samples a step has depends on the seed and the step alone, so that equal seeds train on equal data on any number
of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from planner.capture.trace import Inputs
from planner.errors import DataFileError, UsageError
from planner.runtime.integers import Use

FILE_KINDS = {".npy": "a one-dimensional array of whole numbers", ".bin": "little-endian 16-bit numbers and no header"}


def synthetic(inputs: Inputs, uses: Mapping[int, Use], *, seq_len: int, samples: range, seed: int = 0) -> Any:
    """Made-up samples: whole numbers that the model can look up, normally distributed others.

    Args:
        inputs: the model's ``inputs(batch, seq_len)``; the batch has its structure.
        uses: of `planner.runtime.integers.integer_uses`.
        samples: which of the global batch.
    """

    def made(leaf: int, like: Tensor) -> Tensor:
        return torch.stack([_sample(like, uses.get(leaf), (seed, leaf, sample)) for sample in samples])

    return _filled(inputs(1, seq_len), made)


def _sample(like: Tensor, use: Use | None, seed: tuple[int, ...]) -> Tensor:
    shape, dtype = like.shape[1:], like.dtype
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    random = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    if dtype.is_floating_point:
        return torch.randn(shape, generator=random).to(dtype)
    # What is looked up nowhere is a mask or a position: 0 and 1 are both.
    return torch.randint(0, use.below if use else 2, shape, generator=random, dtype=dtype)


class TokenFile:
    """Runs of tokens out of a file, at places drawn anew for every step."""

    def __init__(self, path: Path, inputs: Inputs, uses: Mapping[int, Use], *, seq_len: int, seed: int = 0) -> None:
        """
        Raises:
            DataFileError: no such file, not tokens, or fewer than one sample has.
            UsageError: the model takes other things than tokens and targets.
        """
        self.path, self.inputs, self.uses, self.seq_len, self.seed = path, inputs, uses, seq_len, seed
        self.tokens = read_tokens(path)
        for leaf, like in enumerate(pytree.tree_leaves(inputs(1, seq_len))):
            if leaf not in uses or tuple(like.shape[1:]) != (seq_len,):
                raise UsageError(
                    f"tensor {leaf} of a batch ({list(like.shape[1:])} per sample, {like.dtype}) is neither tokens nor "
                    f"their targets, {seq_len} per sample: a file of tokens cannot feed this model. Leave out --data."
                )
        if len(self.tokens) <= seq_len:
            raise DataFileError(
                f"{path} has {len(self.tokens)} tokens; a sample has {seq_len} and one more that it predicts. Give a "
                "longer file, or plan for shorter sequences."
            )

    def batch(self, step: int, samples: range, *, global_batch: int) -> Any:
        """Some samples of a step's global batch.

        Raises:
            DataFileError: a token that the model does not have.
        """
        random = np.random.default_rng((self.seed, step))
        places = random.integers(0, len(self.tokens) - self.seq_len, size=global_batch)

        def read(leaf: int, like: Tensor) -> Tensor:
            use = self.uses[leaf]
            # A model that shifts its targets itself is given the tokens once more.
            ahead = 1 if use.kind == "target" and not use.shift else 0
            rows = [self.tokens[places[i] + ahead : places[i] + ahead + self.seq_len] for i in samples]
            found = np.stack(rows).astype(np.int64)
            if found.min() < 0 or found.max() >= use.below:
                worst = found.max() if found.max() >= use.below else found.min()
                row, at = np.argwhere(found == worst)[0]
                raise DataFileError(
                    f"{self.path} holds token {worst} (place {places[samples[row]] + ahead + at}); the model knows 0 "
                    f"to {use.below - 1}. Give a file of this model's tokens."
                )
            return torch.from_numpy(found).to(like.dtype)

        return _filled(self.inputs(1, self.seq_len), read)


def read_tokens(path: Path) -> np.ndarray:
    """The tokens of a file, read only where they are looked at.

    ``.npy`` is numpy's format; ``.bin`` is what nanoGPT and its kin write (``data/*/prepare.py``).

    Raises:
        DataFileError: no such file, or not tokens.
    """
    kind = FILE_KINDS.get(path.suffix)
    if kind is None:
        known = " and ".join(f"{suffix} ({what})" for suffix, what in FILE_KINDS.items())
        raise DataFileError(f"{path}: tokens are read from {known}.")
    try:
        if path.suffix == ".npy":
            tokens: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            tokens = np.memmap(path, dtype="<u2", mode="r")
    except (OSError, ValueError) as error:
        raise DataFileError(f"{path}: not {kind}: {error}") from None
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataFileError(f"{path}: not {kind}, but {tokens.ndim} dims of {tokens.dtype}.")
    return tokens


def _filled(example: Any, fill: Callable[[int, Tensor], Tensor]) -> Any:
    """The same structure with other tensors, numbered in its own order."""
    numbers: Iterator[int] = iter(range(len(pytree.tree_leaves(example))))
    return pytree.tree_map(lambda like: fill(next(numbers), like), example)
