from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from planner import Pin, best_layouts, cli
from planner.errors import MeshwrightError, NoPlanError, ProfileError, UnknownNameError, UsageError
from planner.layout_planning import parse_mesh
from planner.layout_result import LayoutResult
from planner.report import layouts as report
from tests.planner.layouts import small


@pytest.fixture(autouse=True)
def _captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.capture.sources.capture_model", small.capture_once)


def solve(**changes: Any) -> LayoutResult:
    settings: dict[str, Any] = {"hardware": "h100-sxm:2x8", "mesh": {"dp": 2, "tp": 8}, "batch": 4, "seq_len": 1024}
    return best_layouts("gpt2", **settings | changes)


def test_every_call_of_every_block_is_laid_out() -> None:
    found = solve()
    assert sum(block.layout.calls for block in found.blocks) == 14
    assert {fqn for block in found.blocks for fqn in block.params} >= {
        "layers.1-11.attention.wqkv.weight",
        "norm.weight",
    }
    assert 0 < found.gap < 0.02  # the bound is that of an embedding and a head that need not lie alike
    assert found.peak_bytes <= found.limit_bytes and not found.warnings


def test_what_blocks_share_lies_alike_in_all_of_them() -> None:
    found = solve()
    assert len({b.params["tok_embeddings.weight"] for b in found.blocks if "tok_embeddings.weight" in b.params}) == 1


def test_seconds_are_those_of_the_operations_and_the_update() -> None:
    found = solve()
    listed = sum(
        block.layout.calls * sum(op.forward_s + op.backward_s for op in block.layout.operations)
        + block.layout.calls
        * sum(r.forward_s + r.backward_s for op in block.layout.operations for r in op.redistributions)
        for block in found.blocks
    )
    assert 0.9 * found.seconds < listed <= found.seconds


def test_pins_are_obeyed_on_any_axis() -> None:
    found = solve(pins=[Pin(fqn="layers.*.feed_forward.w1", layout="dp:S(1)"),
                        Pin(fqn="layers.*.feed_forward.w1", layout="tp:R")])  # fmt: skip
    placed = {p for b in found.blocks for fqn, p in b.params.items() if fqn.endswith("feed_forward.w1.weight")}
    assert placed == {"S(1),R"}
    assert found.seconds >= solve().seconds


def test_memory_limits_what_is_best() -> None:
    free = solve()
    tight = solve(memory_fraction=0.8 * free.peak_bytes / 80e9)
    assert tight.peak_bytes <= tight.limit_bytes < free.peak_bytes
    assert free.seconds < tight.bound_s <= tight.seconds


def test_the_whole_trade_off_goes_from_the_fastest_to_the_leanest() -> None:
    found = solve(whole_tradeoff=True)
    seconds, peaks = zip(*found.tradeoff, strict=True)
    assert len(seconds) > 3 and list(seconds) == sorted(seconds) and list(peaks) == sorted(peaks, reverse=True)
    assert peaks[-1] < 0.7 * peaks[0]


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"mesh": {"dp": 4, "tp": 8}}, ProfileError, "32"),
        ({"precision": "fp7"}, UnknownNameError, "fp7"),
        ({"pins": [Pin(fqn="layers.*.feed_forward.w1", layout="ep:R")]}, UsageError, "dp:S(1) or tp:S(1)"),
        ({"memory_fraction": 1e-6}, NoPlanError, "no layouts fit: the leanest found need"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], error: type[MeshwrightError], text: str) -> None:
    with pytest.raises(error) as refused:
        solve(**changes)
    assert text in str(refused.value)


def test_a_mesh_is_read_outer_to_inner() -> None:
    assert list(parse_mesh("dp=8, tp=4").items()) == [("dp", 8), ("tp", 4)]


@pytest.mark.parametrize("text", ["8,8", "dp=8,dp=2", "dp=0", "dp", "dp=8;tp=8", ""])
def test_another_mesh_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="dp=8,tp=8"):
        parse_mesh(text)


def test_the_command_prints_tables_or_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["meshwright", "layouts", "gpt2", "--mesh", "dp=2,tp=8", "--batch", "4", "--seq-len", "1024",
               "--hardware", "h100-sxm:2x8"]  # fmt: skip
    for arguments in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", command + arguments)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 0
        out = capsys.readouterr().out
        if arguments:
            content = json.loads(out)
            assert (content["mesh"], content["gap"]) == ({"dp": 2, "tp": 8}, pytest.approx(solve().gap))
        else:
            assert out == report.render(solve())
            assert "layers.1-11.attention.wqkv.weight" in out and "slower than any that fit" in out.splitlines()[0]
