"""What the schema says of a toy profile with one thing changed."""

from __future__ import annotations

import pytest

from hardware_profiles.errors import ProfileError
from hardware_profiles.schema import Profile, parse_profile
from tests.hardware_profiles.pictures import TOY

GOOD = TOY.read_text(encoding="utf-8")


def changed(*changes: tuple[str, str]) -> str:
    text = GOOD
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def profile(*changes: tuple[str, str]) -> Profile:
    result = parse_profile(changed(*changes), "toy.toml")
    assert isinstance(result, Profile)
    return result


def errors(*changes: tuple[str, str]) -> list[str]:
    with pytest.raises(ProfileError) as caught:
        parse_profile(changed(*changes), "toy.toml")
    return str(caught.value).splitlines()
