"""docs/hardware.md: what it prints is what the commands print, and the keys it explains are those of the schema."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from hardware_profiles.device_section import DeviceSection, EfficiencySection, HostSection, TierSection
from hardware_profiles.network_sections import CollectivesSection, NetworkSection, NicSection
from hardware_profiles.node_sections import LinkSection, LinksNode, MeshNode, RingNode, SwitchNode
from hardware_profiles.schema import GroupSection, MixedProfile, Profile

PAGE = (Path(__file__).parents[1] / "docs" / "hardware.md").read_text()
SHOWN = re.findall(r"<!-- output of: meshwright (.+?) -->\n```\n(.*?)```", PAGE, re.DOTALL)


def test_there_are_outputs() -> None:
    assert len(SHOWN) == 7


@pytest.mark.parametrize(("command", "text"), SHOWN, ids=[command for command, _ in SHOWN])
def test_printed_output_is_the_commands(command: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    run = [sys.executable, "-c", "from planner.cli import main; main()", *command.split()]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == text


@pytest.mark.parametrize(
    "section",
    [
        *(Profile, MixedProfile, GroupSection, DeviceSection, EfficiencySection, HostSection, TierSection),
        *(CollectivesSection, SwitchNode, MeshNode, RingNode, LinksNode, LinkSection, NicSection, NetworkSection),
    ],
    ids=lambda section: section.__name__,
)
def test_every_key_is_explained(section: type[BaseModel]) -> None:
    for key in section.model_fields:
        peak = re.fullmatch(r"peak_(\w+?)_tflop_per_s", key)
        # The peaks share a row: `peak_fp64_`, `fp32_`, ... `fp4_tflop_per_s`.
        words = [f"{peak[1]}_"] if peak else [f"`{key}`", f"`{key} ", f"[{key}]", f".{key}]"]
        assert any(word in PAGE for word in words), key
