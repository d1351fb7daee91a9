from __future__ import annotations

import pytest

from tests.hardware_profiles.faults import errors, profile


def cards(*lines: str) -> tuple[str, str]:
    return "[nic]\ncount = 4\n", "\n".join(("[nic]", *lines)) + "\n"


def test_cards_are_spread_evenly_in_order() -> None:
    nic = profile().nic
    assert nic is not None
    assert nic.cards(4) == [[0], [1], [2], [3]]
    assert nic.cards(8) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert nic.cards(2) == [[0], [0], [1], [1]]
    two = profile(cards("count = 2", "contended_fraction = 0.5")).nic
    assert two is not None
    built = two.build(4, 4)
    assert built.attached == ((0, 1), (2, 3))
    assert (built.bytes_per_s, built.latency_s, built.contended_fraction) == (10e9, pytest.approx(3e-6), 0.5)
    assert two.build(4, 2).attached == ((0, 1),)
    assert two.build(4, 3).attached == ((0, 1), (2,))


def test_cards_may_be_listed() -> None:
    nic = profile(cards("count = 2", "attached = [[3, 0], [1, 2]]", "contended_fraction = 0.5")).nic
    assert nic is not None
    assert nic.build(4, 4).attached == ((3, 0), (1, 2))


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (("count = 3",), "nic: count (3) must divide the node's devices (4) or be a multiple of them; otherwise list"),
        (("count = 2",), "nic: contended_fraction is missing: a card serves more than one device"),
        (("count = 2", "attached = [[0, 1]]"), "nic: attached lists 1 cards, count is 2"),
        (("count = 2", "attached = [[0, 0, 1], [2, 3]]"), "nic: attached names a device twice on one card"),
        (("count = 1", "attached = [[0, 1, 2, 4]]"), "nic: attached: device 4 does not exist, the node has 0 to 3"),
        (("count = 1", "attached = [[0, 1, 2]]"), "nic: attached: device 3 has no card"),
        (("count = 0",), "nic.count = 0: Input should be greater than or equal to 1"),
    ],
)
def test_every_device_has_a_card(lines: tuple[str, ...], line: str) -> None:
    assert errors(cards(*lines))[0].startswith(f"toy.toml: {line}")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('routing = "sprayed"', 'routing = "single-path"', "network[0]: routing = 'single-path' needs num_paths"),
        ('routing = "sprayed"', 'routing = "sprayed"\nnum_paths = 4', "network[0]: routing = 'single-path' needs num"),
        ('routing = "sprayed"', "", "network[0].routing: required key is missing"),
        ('routing = "sprayed"', 'routing = "sprayed"\nnum_nodes = 1', "network[0].num_nodes = 1: Input should be gre"),
        ('algorithms = ["ring", "tree"]', 'algorithms = ["tree"]', "collectives: algorithms must contain 'ring'"),
        (
            'algorithms = ["ring", "tree"]',
            'algorithms = ["magic"]',
            "collectives.algorithms[0] = 'magic': Input",
        ),
        ('protocols = ["ll", "simple"]', 'protocols = ["ll"]', "collectives: protocols must contain 'simple' or 'hock"),
    ],
)
def test_faults(old: str, new: str, line: str) -> None:
    assert errors((old, new))[0].startswith(f"toy.toml: {line}")


def test_a_level_takes_one_of_two_ways_to_say_what_is_lost() -> None:
    more = 'routing = "sprayed"\n\n[[network]]\nname = "spine"\nlatency_us = 1\nrouting = "sprayed"\n'
    both = more + "oversubscription = 2\nuplink_gb_per_s = 20\n"
    got = errors(('routing = "sprayed"\n', both))[0]
    assert got == "toy.toml: network[1]: give one of oversubscription and uplink_gb_per_s, not both"


def test_the_library_in_si_units() -> None:
    library = profile().collectives.build()
    assert (library.launch_s, library.copy_bytes_per_s) == (pytest.approx(4e-6), 500e9)
    assert library.algorithms == {"ring", "tree"}
