from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hardware_profiles.load import names
from planner import cli

TOY = Path(__file__).parents[1] / "hardware_profiles" / "toy.toml"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs ``meshwright hardware`` in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["meshwright", "hardware", *arguments])
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code, out=out, err=err)

    return run


def test_list_names_every_profile_first_on_its_line(run: Any) -> None:
    done = run("list")
    assert (done.code, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.splitlines()] == list(names())
    assert [entry["name"] for entry in json.loads(run("list", "--json").out)] == list(names())


def test_show_is_the_profile(run: Any) -> None:
    done = run("show", str(TOY))
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("toy: 24 figures")
    assert json.loads(run("show", str(TOY), "--json").out)["profile"]["name"] == "toy"
    assert "mesh" not in json.loads(run("show", f"{TOY}:2x4", "--json").out)


@pytest.mark.parametrize("where", [["{}:2x4"], ["{}", "--shape", "2x4"], ["{}", "--devices", "8"]], ids=str)
def test_show_axes_takes_the_shape_in_three_ways(run: Any, where: list[str]) -> None:
    done = run("show", *(word.format(TOY) for word in where), "--axes", "tp=4,pp=2")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("toy:2x4: 8 devices, mesh pp 2 x tp 4\n")


def test_show_axes_as_json(run: Any) -> None:
    content = json.loads(run("show", f"{TOY}:2x4", "--axes", "tp=4", "--json").out)
    assert content["profile"]["name"] == "toy"
    assert content["mesh"]["axes"][0]["levels"][0]["bytes_per_s"] == pytest.approx(80e9)


def test_show_of_a_mixed_cluster_and_of_one_group(run: Any) -> None:
    assert "two-islands: mixed cluster of 2 groups" in run("show", "two-islands").out
    assert "a100-80gb: " in run("show", "two-islands@ib").out
    whole = run("show", "two-islands", "--axes", "tp=8,dp_shard=8")
    assert whole.out.startswith("two-islands:8x8: 64 devices")
    assert "ethernet" in whole.out
    assert run("show", "two-islands@ib", "--axes", "tp=8").out.startswith("two-islands@ib:4x8: 32 devices")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "h100-smx"], 4, "Did you mean 'h100-sxm'?"),
        (["show", "h100-sxm", "--axes", "tp=2"], 4, "how many devices? Give their number"),
        (["show", "h100-sxm:2x9"], 4, "devices per node (9) may not exceed the node of h100-sxm (8)"),
        (["show", "h100-sxm:2x8", "--axes", "tp=3"], 2, "a mesh of tp 3 has 3 ranks, which must divide the 16 devices"),
        (["show", "h100-sxm:2x8", "--axes", "dp=2"], 2, "'dp' is not an axis"),
        (["show", "h100-sxm:2x8", "--shape", "4x8"], 2, "has a shape already; leave out --shape 4x8"),
        (["show", "two-islands@x"], 4, "unknown group of two-islands 'x'"),
        (["diff", "h100-sxm", "b300"], 4, "unknown hardware 'b300'"),
        (["plot", "two-islands", "-o", "no/such/dir.svg"], 4, "there is no directory no/such"),
    ],
)
def test_mistakes_say_what_to_do(run: Any, arguments: list[str], code: int, said: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert done.err.startswith("meshwright: error: ")


def test_validate(run: Any, tmp_path: Path) -> None:
    done = run("validate", str(TOY))
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{TOY}: valid: toy, ")
    broken = tmp_path / "broken.toml"
    broken.write_text(TOY.read_text().replace("gemm = 0.9", "gemm = 90.0").replace("count = 4", "count = 0\ncuont = 4"))
    done = run("validate", str(broken))
    assert (done.code, done.out) == (4, "")
    assert sorted(done.err.splitlines()) == [
        f"{broken}: device.efficiency.gemm = 90.0: must be 0.001 to 1 (a part of the whole)",
        f"{broken}: nic.count = 0: Input should be greater than or equal to 1",
        f"{broken}: nic.cuont = 4: unknown key",
    ]
    assert run("validate", str(tmp_path / "none.toml")).code == 4


def test_diff(run: Any, tmp_path: Path) -> None:
    faster = tmp_path / "faster.toml"
    faster.write_text(TOY.read_text().replace("memory_gb_per_s = 1000.0", "memory_gb_per_s = 3000.0"))
    done = run("diff", str(TOY), str(faster))
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1].split() == ["device.memory_gb_per_s", "1000", "GB/s", "3000", "GB/s", "3"]
    content = json.loads(run("diff", str(TOY), str(faster), "--json").out)
    assert content["figures"] == [{"path": "device.memory_gb_per_s", "first": 1000.0, "second": 3000.0, "ratio": 3.0}]


def test_plot_draws_two_nodes_and_spares_files(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "toy.svg"
    done = run("plot", str(TOY), "-o", str(path))
    assert (done.code, done.out, done.err) == (0, "", f"meshwright: saved {path}\n")
    assert 'id="all-gather:8"' in path.read_text()
    assert run("plot", str(TOY), "-o", str(path)).code == 4
    assert run("plot", str(TOY), "-o", str(path), "--force").code == 0
    assert run("plot", str(TOY)).out == path.read_text()
    assert 'id="all-gather:16"' in run("plot", f"{TOY}:4x4").out
    assert 'id="all-gather:64"' in run("plot", "two-islands").out


def test_measure_passes_on_every_option_and_the_exit_code(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def measure(output: Path, **options: Any) -> int:
        asked.update(options, output=output)
        return 5

    monkeypatch.setitem(sys.modules, "hardware_profiles.measure", SimpleNamespace(measure=measure))
    monkeypatch.setattr("hardware_profiles.measure", SimpleNamespace(measure=measure), raising=False)
    more = ["--name", "mine", "--base", "h100-sxm", "--quick", "--fresh", "--time-limit", "9", "--nccl-tests", "a.json"]
    assert run("measure", "-o", "box.toml", *more, "--nccl-tests", "b.json").code == 5
    assert asked == {
        "output": Path("box.toml"),
        "name": "mine",
        "base": "h100-sxm",
        "quick": True,
        "fresh": True,
        "time_limit_s": 9.0,
        "nccl_tests": [Path("a.json"), Path("b.json")],
    }
    assert run("measure").code == 2
