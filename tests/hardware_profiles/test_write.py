import tomllib
from pathlib import Path

import pytest

from hardware_profiles.fit import Fitted
from hardware_profiles.fitting.robust import ClassError
from hardware_profiles.load import load_profile, names
from hardware_profiles.schema import MixedProfile, Profile, parse_profile
from hardware_profiles.write import profile_text, toml_text
from tests.hardware_profiles.test_samples import MACHINE

TOY = str(Path(__file__).with_name("toy.toml"))


@pytest.mark.parametrize("name", [TOY, *names()])
def test_every_profile_is_read_back_as_it_was(name: str) -> None:
    profile = load_profile(name)
    if isinstance(profile, MixedProfile):
        pytest.skip("only profiles of one kind of machine are written")
    text = toml_text(profile)
    assert parse_profile(text, "written", lambda base: {}) == profile
    assert toml_text(profile) == text


def test_the_first_lines_say_what_was_measured_and_how_well() -> None:
    profile = load_profile(TOY)
    assert isinstance(profile, Profile)
    fitted = Fitted(
        profile=profile,
        errors=(ClassError(name="all_reduce", num_samples=20, num_rejected=1, median=0.05, p90=0.12),),
        warnings=("pair 0-1 is slow",),
    )
    text = profile_text(fitted, MACHINE, command="-o x.toml")
    assert text.startswith("# 8 x Toy, nccl.\n# 2 nodes of 4, 2 hosts: a, b.\n# Driver: 1.0. torch 2.\n")
    assert "# Measured 2026-11-20 with: meshwright hardware measure -o x.toml\n" in text
    assert "#   all_reduce: median 5%, p90 12% of 20 samples, 1 rejected\n# Warning: pair 0-1 is slow\n" in text
    assert tomllib.loads(text)["name"] == "toy"
