from __future__ import annotations

import pytest

from hardware_profiles.errors import UnknownNameError
from hardware_profiles.load import load_cluster


def test_peak_by_dtype() -> None:
    device = load_cluster("h100-sxm", 8).device
    assert device.peak("bfloat16") == 989e12
    with pytest.raises(
        UnknownNameError, match=r"unknown dtype for device 'h100-sxm' 'int8'\. Known: bfloat16, float16, float32"
    ):
        device.peak("int8")


def test_a_device_is_a_cache_key() -> None:
    one, two = load_cluster("h100-sxm", 8).device, load_cluster("h100-sxm", 16).device
    assert one == two
    assert hash(one) == hash(two)


def test_devices_per_node() -> None:
    assert load_cluster("mi250x:4x8").devices_per_node == 8
    assert load_cluster("mi250x", 4).devices_per_node == 4
