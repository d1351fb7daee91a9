"""Batches against the file they come from, and against themselves under another division."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from planner.errors import DataFileError, UsageError
from planner.runtime.data import TokenFile, synthetic
from planner.runtime.integers import Use

LENGTH = 5
TEXT = {0: Use("index", 50), 1: Use("target", 50)}


def text_inputs(batch: int, seq_len: int) -> tuple[Tensor, ...]:
    tokens = torch.empty(batch, seq_len, dtype=torch.int64, device="meta")
    return tokens, tokens


def labelled(batch: int, seq_len: int) -> dict[str, Tensor]:
    return dict(zip(("input_ids", "labels"), text_inputs(batch, seq_len), strict=True))


def mixed(batch: int, seq_len: int) -> dict[str, Tensor]:
    return {
        "x": torch.empty(batch, 3, dtype=torch.bfloat16, device="meta"),
        "kind": torch.empty(batch, dtype=torch.int32, device="meta"),
        "known": torch.empty(batch, 2, dtype=torch.bool, device="meta"),
    }


def saved(folder: Path, tokens: np.ndarray, name: str = "tokens.npy") -> Path:
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, tokens)
    else:
        tokens.tofile(path)
    return path


def test_made_up_samples_do_not_depend_on_who_makes_them() -> None:
    uses = {1: Use("target", 3)}
    whole = synthetic(mixed, uses, seq_len=1, samples=range(6))
    halves = [synthetic(mixed, uses, seq_len=1, samples=range(a, a + 3)) for a in (0, 3)]
    for name, tensor in whole.items():
        assert torch.equal(tensor, torch.cat([half[name] for half in halves]))
    assert (whole["x"].dtype, whole["kind"].dtype) == (torch.bfloat16, torch.int32)
    assert set(whole["kind"].tolist()) <= {0, 1, 2} and whole["known"].all()
    assert whole["x"].unique().numel() > 3
    again = synthetic(mixed, uses, seq_len=1, samples=range(6), seed=1)
    assert not torch.equal(whole["x"], again["x"])


@pytest.mark.parametrize("name", ["tokens.npy", "tokens.bin"])
def test_targets_are_the_tokens_that_follow(tmp_path: Path, name: str) -> None:
    tokens = np.random.default_rng(0).permutation(50).astype("<u2")
    file = TokenFile(saved(tmp_path, tokens, name), text_inputs, TEXT, seq_len=LENGTH)
    follows = dict(zip(tokens.tolist(), tokens.tolist()[1:], strict=False))
    seen = set()
    for step in range(20):
        read, target = file.batch(step, range(4), global_batch=8)
        assert read.shape == target.shape == (4, LENGTH)
        assert target.tolist() == [[follows[t] for t in row] for row in read.tolist()]
        assert [row[1:] for row in read.tolist()] == [row[:-1] for row in target.tolist()]
        seen.update(row[0] for row in read.tolist())
    assert len(seen) > 20
    halves = [file.batch(3, range(a, a + 4), global_batch=8)[0] for a in (0, 4)]
    assert torch.equal(torch.cat(halves), file.batch(3, range(8), global_batch=8)[0])


def test_a_model_that_shifts_its_labels_gets_the_tokens_twice(tmp_path: Path) -> None:
    uses = {0: Use("index", 50), 1: Use("target", 50, shift=1)}
    file = TokenFile(saved(tmp_path, np.arange(50)), labelled, uses, seq_len=LENGTH)
    batch = file.batch(0, range(3), global_batch=3)
    assert torch.equal(batch["input_ids"], batch["labels"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "none.npy", "none.npy: not a one-dimensional array"),
        (tmp_path / "tokens.txt", r"tokens are read from \.npy .* and \.bin"),
        (saved(tmp_path, np.zeros((2, 40), dtype=np.int64), "two.npy"), "but 2 dims of int64"),
        (saved(tmp_path, np.zeros(40), "real.npy"), "but 1 dims of float64"),
        (saved(tmp_path, np.zeros(LENGTH, dtype=np.int64), "short.npy"), "has 5 tokens; a sample has 5 and one more"),
    ):
        with pytest.raises(DataFileError, match=said):
            TokenFile(path, text_inputs, TEXT, seq_len=LENGTH)
    empty = tmp_path / "empty.bin"
    empty.touch()
    with pytest.raises(DataFileError, match=r"empty\.bin"):
        TokenFile(empty, text_inputs, TEXT, seq_len=LENGTH)


def test_tokens_that_the_model_does_not_have(tmp_path: Path) -> None:
    tokens = np.zeros(LENGTH + 1, dtype=np.int64)
    tokens[3] = 50
    file = TokenFile(saved(tmp_path, tokens), text_inputs, TEXT, seq_len=LENGTH)
    with pytest.raises(DataFileError, match=r"holds token 50 \(place 3\); the model knows 0 to 49"):
        file.batch(0, range(1), global_batch=1)


def test_a_model_of_other_things_reads_no_tokens(tmp_path: Path) -> None:
    path = saved(tmp_path, np.arange(50))
    with pytest.raises(UsageError, match=r"tensor 0 of a batch .* Leave out --data"):
        TokenFile(path, mixed, {1: Use("target", 3)}, seq_len=LENGTH)
