from __future__ import annotations

import re
from pathlib import Path

import pytest

from hardware_profiles.errors import ProfileError, UnknownNameError
from hardware_profiles.load import load_profile, names
from planner.report import profiles

TOY = Path(__file__).parents[2] / "hardware_profiles" / "toy.toml"


def flat(text: str) -> str:
    """Text without the places where lines were broken."""
    return "".join(text.split())


def write(tmp_path: Path, *changes: tuple[str, str], name: str = "mine.toml") -> Path:
    """The toy profile with changes."""
    text = TOY.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / name
    path.write_text(text)
    return path


def test_the_list_has_a_line_per_profile_in_a_pipe() -> None:
    known = {name: load_profile(name) for name in names()}
    lines = profiles.render_list(known, width=None).splitlines()
    assert [line.split()[0] for line in lines] == list(names())
    (h100,) = (line for line in lines if line.startswith("h100-sxm "))
    assert h100.split() == ["h100-sxm", "79.1", "GiB", "989", "TFLOP/s", "bf16", "8,", "switch", "network"]
    (islands,) = (line for line in lines if line.startswith("two-islands "))
    assert "ib: 4 nodes of a100-80gb + roce: 4 nodes of a100-80gb, over ethernet" in islands


def test_the_list_on_a_terminal_has_a_headline_and_keeps_its_width() -> None:
    known = {name: load_profile(name) for name in names()}
    lines = profiles.render_list(known, width=80).splitlines()
    assert lines[0].split() == ["name", "memory", "peak", "node", "network"]
    assert max(map(len, lines)) <= 80
    assert "two-islands" in {line.split()[0] for line in lines}


def test_the_list_as_json_is_in_si_units() -> None:
    (entry,) = profiles.list_json({"toy": load_profile(str(TOY))})
    assert entry["memory_bytes"] == 16 * 2**30
    assert entry["peak_flop_per_s"] == {"bfloat16": 100e12}
    assert (entry["devices_per_node"], entry["fabric"], entry["network"]) == (4, "switch", ["network"])
    (mixed,) = profiles.list_json({"two-islands": load_profile("two-islands")})
    assert mixed["groups"][1] == {"name": "roce", "hardware": "a100-80gb", "num_nodes": 4}


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("name", names())
def test_every_figure_is_shown_with_its_evidence_and_source(name: str, width: int) -> None:
    profile = load_profile(name)
    text = profiles.render_profile(profile, width=width)
    assert max(map(len, text.splitlines())) <= width
    together = flat(text)
    figures = {path: figure for path, figure in profile_figures(profile).items() if figure.source}
    assert figures
    for figure in figures.values():
        assert flat(figure.source) in together


def profile_figures(profile: object) -> dict[str, profiles.Figure[object]]:
    from planner.report.profile_values import figures

    return figures(profile)  # type: ignore[arg-type]


def test_a_figure_has_unit_evidence_and_the_number_of_its_source(tmp_path: Path) -> None:
    old = "memory_gb_per_s = 1000.0"
    figure = 'memory_gb_per_s = { value = 1000.0, evidence = "measured", source = "our own bench" }'
    text = profiles.render_profile(load_profile(str(write(tmp_path, (old, figure)))), width=100)
    rows = {line[2:].split("  ")[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert rows["memory bandwidth"].split() == ["memory", "bandwidth", "1000", "GB/s", "measured", "1"]
    assert rows["memory"].split() == ["memory", "16", "GiB", "not", "stated"]
    assert rows["gemm"].split()[:2] == ["gemm", "90%"]
    assert rows["launch overhead"].split()[:4] == ["launch", "overhead", "2", "us"]
    assert rows["peak bf16"].split()[2:4] == ["100", "TFLOP/s"]
    assert "     1 our own bench" in text
    assert text.startswith("toy: 24 figures: 1 measured, 23 not stated\n")


def test_sections_are_those_of_the_file_with_the_network_last() -> None:
    text = profiles.render_profile(load_profile(str(TOY)), width=100)
    sections = re.findall(r"^\[+[a-z.]+\]+$", text, re.MULTILINE)
    assert sections == ["[device]", "[device.efficiency]", "[collectives]", "[node]", "[nic]", "[[network]]"]


def test_links_of_equal_figures_stand_together() -> None:
    text = profiles.render_profile(load_profile("mi250x"), width=100)
    assert "bandwidth           200 GB/s: 0-1, 2-3, 4-5, 6-7" in text
    assert text.count("[[node.links]]") == 1


def test_a_mixed_cluster_shows_its_groups() -> None:
    text = profiles.render_profile(load_profile("two-islands"), width=100)
    lines = [line.split() for line in text.splitlines()]
    assert ["ib", "a100-80gb", "4", "8,", "switch", "79.2", "GiB", "312", "TFLOP/s", "bf16"] in [x[:10] for x in lines]
    assert "4 x 12.5 GB/s" in text
    assert "[groups.nic] of roce" in text


def test_one_group_is_the_profile_of_its_machines() -> None:
    profile = profiles.profile_of("two-islands", "roce")
    assert profile == load_profile("a100-80gb").model_copy(update={"nic": profile.nic})  # type: ignore[union-attr]
    assert profile.nic.count == 4  # type: ignore[union-attr]
    with pytest.raises(UnknownNameError, match=r"unknown group of two-islands 'rocs'. Did you mean 'roce'"):
        profiles.profile_of("two-islands", "rocs")
    with pytest.raises(ProfileError, match="toy is not a mixed cluster and has no group 'x'"):
        profiles.profile_of(str(TOY), "x")


def test_a_valid_file_is_summed_up(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert profiles.check_file(path) == (
        f"{path}: valid: toy, 4 devices of 16.0 GiB per node (switch), network; 24 figures: 24 not stated\n"
    )


@pytest.mark.parametrize("name", names())
def test_every_packaged_profile_is_valid(name: str) -> None:
    path = Path(__file__).parents[3] / "hardware_profiles" / "data" / f"{name}.toml"
    assert f"{path}: valid: " in profiles.check_file(path)


def test_every_fault_has_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, ("memory_gb_per_s = 1000.0", "memory_gb_per_s = 1e12"), ("gemm = 0.9", "gemm = 1.2"))
    with pytest.raises(ProfileError) as caught:
        profiles.check_file(path)
    bandwidth, gemm = str(caught.value).splitlines()
    assert bandwidth.startswith(f"{path}: device.memory_gb_per_s = 1000000000000.0: must be ")
    assert bandwidth.endswith(" GB/s")
    assert gemm == f"{path}: device.efficiency.gemm = 1.2: must be 0.001 to 1 (a part of the whole)"


def test_a_file_without_suffix_is_no_packaged_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, name="h100-sxm")
    monkeypatch.chdir(tmp_path)
    assert profiles.check_file(Path("h100-sxm")).startswith("h100-sxm: valid: toy")


def test_json_has_the_keys_of_the_file() -> None:
    content = profiles.profile_json(load_profile(str(TOY)))
    assert content["profile"]["device"]["memory_gb_per_s"] == {"value": 1000.0}
    assert content["evidence"] == "derived"
    mixed = profiles.profile_json(load_profile("two-islands"))
    assert mixed["machines"]["roce"]["nic"]["count"] == 4
