from __future__ import annotations

import pytest

from hardware_profiles.errors import ProfileError
from hardware_profiles.schema import MixedProfile, parse_profile
from tests.hardware_profiles.faults import GOOD, errors, profile

SPINE = '\n[[network]]\nname = "spine"\nlatency_us = 1.0\nrouting = "sprayed"\n'
MIXED = """
name = "mixed"
[[groups]]
name = "left"
hardware = "h100-sxm"
num_nodes = 2
[[groups]]
name = "right"
hardware = "a100-80gb"
num_nodes = 2
[[network]]
name = "wan"
latency_us = 100.0
uplink_gb_per_s = 10.0
routing = "sprayed"
"""


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('name = "toy"', 'name = "My Toy"', "name = 'My Toy': String should match pattern '^[a-z0-9][a-z0-9_-]*$'"),
        ('name = "toy"', 'name = "toy"\ncolour = 3', "colour = 3: unknown key"),
        ("copy_gb_per_s = 500.0", "copy_gb_per_s = 5000.0", "collectives.copy_gb_per_s = 5000: above device.memory"),
        ('name = "network"\n', 'name = "network"\noversubscription = 2.0\n', "network[0] (network): the cards limit"),
    ],
)
def test_one_line_per_fault(old: str, new: str, line: str) -> None:
    (got,) = errors((old, new))
    assert got.startswith(f"toy.toml: {line}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD + SPINE, "network[0] (network): num_nodes is missing; only the last may leave it out"),
        (GOOD + "num_nodes = 4\n" + SPINE, "network[1] (spine): oversubscription or uplink_gb_per_s is missing"),
        (
            GOOD + "num_nodes = 4\n" + SPINE.replace("spine", "network"),
            "level names must differ, got network, network",
        ),
        (
            GOOD + "num_nodes = 4\n" + SPINE + "num_nodes = 6\noversubscription = 2\n",
            "network[1] (spine): num_nodes = 6 must be a larger multiple of 4",
        ),
        (
            GOOD + "num_nodes = 4\n" + SPINE + "uplink_gb_per_s = 161.0\n",
            "network[1] (spine): uplink_gb_per_s = 161: above the 4 x 4 cards of 10 GB/s below it (160)",
        ),
        (GOOD[: GOOD.index("[nic]")], ""),
        (
            GOOD[: GOOD.index("[[network]]")],
            "[nic] and [[network]] go together: give both, or neither for a single machine",
        ),
    ],
)
def test_levels_follow_from_each_other(text: str, line: str) -> None:
    if not line:
        parse_profile(text, "toy.toml")
        return
    with pytest.raises(ProfileError) as caught:
        parse_profile(text, "toy.toml")
    assert str(caught.value).startswith(f"toy.toml: {line}")


def test_all_faults_at_once() -> None:
    got = errors(("memory_gb_per_s = 1000.0", "memory_gb_per_s = 0"), ("gemm = 0.9", "gemm = 2"))
    assert [line.split(" = ")[0] for line in got] == [
        "toy.toml: device.memory_gb_per_s",
        "toy.toml: device.efficiency.gemm",
    ]


def test_broken_toml_says_where() -> None:
    (got,) = errors(("num_compute_units = 10", "num_compute_units = = 10"))
    assert got == "toy.toml: not valid TOML: Invalid value (at line 7, column 21)"


def test_every_figure_is_found_by_its_path() -> None:
    figures = profile().figures()
    assert figures["node.gb_per_s"].value == 100
    assert figures["device.efficiency.norm"].value == 0.7
    assert figures["network[0].latency_us"].value == 0
    assert len(figures) == 24


def test_the_evidence_of_a_profile_is_its_weakest() -> None:
    assert profile().evidence == "derived"
    text = GOOD
    for path, figure in profile().figures().items():
        key = path.rpartition(".")[2]
        number = figure.value if isinstance(figure.value, int) else float(figure.value)
        for spelling in {f"\n{key} = {number}\n", f"\n{key} = {int(number)}\n"}:
            text = text.replace(spelling, f'\n{key} = {{ value = {number}, evidence = "measured" }}\n')
    measured = parse_profile(text, "toy.toml")
    assert measured.evidence == "measured"  # type: ignore[union-attr]
    weaker = text.replace('value = 0.9, evidence = "measured"', 'value = 0.9, evidence = "datasheet"', 1)
    assert parse_profile(weaker, "toy.toml").evidence == "datasheet"  # type: ignore[union-attr]


def test_a_base_gives_the_sections_that_are_missing() -> None:
    asked: list[str] = []

    def base(name: str) -> dict[str, object]:
        import tomllib

        asked.append(name)
        return tomllib.loads(GOOD)

    text = 'name = "other"\nbase = "toy"\n' + GOOD[GOOD.index("[nic]") :].replace("gb_per_s = 10.0", "gb_per_s = 20.0")
    other = parse_profile(text, "other.toml", base)
    assert asked == ["toy"]
    assert other.name == "other"
    assert other.nic.gb_per_s.value == 20  # type: ignore[union-attr]
    assert other.device == profile().device  # type: ignore[union-attr]


def test_a_mixed_cluster_is_groups_and_what_joins_them() -> None:
    mixed = parse_profile(MIXED, "mixed.toml")
    assert isinstance(mixed, MixedProfile)
    assert [group.name for group in mixed.groups] == ["left", "right"]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('name = "right"', 'name = "left"', "group names must differ, got left, left"),
        ("uplink_gb_per_s = 10.0\n", "", "network[0] (wan): oversubscription or uplink_gb_per_s is missing"),
        ('name = "mixed"', 'name = "mixed"\n[device]\nx = 1', "device: unknown key"),
        ("num_nodes = 2\n", "", "groups[0].num_nodes: required key is missing"),
    ],
)
def test_faults_of_a_mixed_cluster(old: str, new: str, line: str) -> None:
    with pytest.raises(ProfileError) as caught:
        parse_profile(MIXED.replace(old, new, 1), "mixed.toml")
    assert str(caught.value).startswith(f"mixed.toml: {line}")
