"""Samples made from a known profile must give its figures back."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodels.compute import attention_s, gemm_s, memory_bound_s
from costmodels.units import KIB, MIB
from hardware_profiles.assemble import uniform_cluster
from hardware_profiles.cluster import Cluster, Device
from hardware_profiles.fit import fit
from hardware_profiles.fitting.links import predict_s
from hardware_profiles.fitting.robust import Parameter, settled, solve, typical
from hardware_profiles.fitting.sections import FitError
from hardware_profiles.load import load_profile
from hardware_profiles.measuring.sizes import QUICK, Axis, axes, collective_plan, device_plan
from hardware_profiles.samples import COLLECTIVES, Measurement, Sample
from hardware_profiles.schema import Profile
from tests.hardware_profiles.pictures import machine

TOY = Path(__file__).with_name("toy.toml")
SIZES = replace(QUICK, passes=((KIB, 64 * KIB, MIB), (16 * MIB, 256 * MIB)))


def toy(**changes: Any) -> Profile:
    sections = load_profile(str(TOY)).model_dump(exclude_none=True)
    for path, value in changes.items():
        section, key = path.split("__")
        sections[section][key] = value
    return Profile.model_validate(sections)


def device_s(device: Device, what: Measurement) -> float:
    if what.kind == "launch":
        return device.launch_overhead_s
    if what.kind in ("pointwise", "norm", "optimizer"):
        return memory_bound_s(device, what.num_bytes, what.kind)
    if what.kind == "gemm":
        m, n, k = what.shape
        return gemm_s(device, what.dtype, m=m, n=n, k=k)
    if what.kind == "grouped_gemm":
        groups, m, n, k = what.shape
        return gemm_s(device, what.dtype, batch=groups, m=m, n=n, k=k, grouped=True)
    batch, heads, length, head_dim = what.shape
    backward = what.kind == "attention_backward"
    return attention_s(
        device, what.dtype, batch=batch, heads=heads, q_len=length, kv_len=length, head_dim=head_dim, causal=True,
        backward=backward,
    )  # fmt: skip


def own_cards(cluster: Cluster) -> Cluster:
    """What one device of each node sees while the others are silent."""
    machines = cluster.machines[0]
    if machines.nic is None:
        return cluster
    nic = replace(machines.nic, attached=tuple((device,) for device in range(cluster.devices_per_node)))
    network = tuple(replace(level, uplink_devices=level.uplink_devices // 4) for level in cluster.network)
    return replace(cluster, machines=(replace(machines, nic=nic),), network=network)


def measured(profile: Profile, nodes: int, *, noise: float = 0.02, wrong: float = 0.0) -> Iterator[Sample]:
    """Samples of the whole plan; a part ``wrong`` of them took three times as long, and some repeats twice."""
    rng = np.random.default_rng(1)
    cluster = uniform_cluster("toy", profile, nodes, 4, name="toy")
    plan = [*device_plan(SIZES, ["bfloat16"], accelerator=False), *collective_plan(SIZES, nodes, 4, "bfloat16")]
    for what in plan:
        if what.kind.startswith("overlap"):
            seconds = 1e-3 if what.kind == "overlap_alone" else 1.25e-3
        elif what.kind in COLLECTIVES:
            pictured = own_cards(cluster) if what.ranks else cluster
            # Behind the toy's switch every pair is like the first.
            pair = {"stride": 1} if what.ranks and what.ranks[-1] < 4 else {}
            seconds = predict_s(pictured, Sample(**what.model_dump() | pair, seconds=(1.0,)))
        else:
            seconds = device_s(cluster.device, what)
        if what.kind in COLLECTIVES and not what.ranks and rng.random() < wrong:
            seconds *= 3
        repeats = seconds * np.exp(noise * rng.standard_normal(9))
        repeats[3] *= 2
        yield Sample(**what.model_dump(), seconds=tuple(float(value) for value in repeats))


@pytest.mark.parametrize("wrong", [0.0, 0.08])
def test_figures_of_a_known_profile_come_back(wrong: float) -> None:
    fitted = fit(machine(2), list(measured(toy(), 2, wrong=wrong)), name="again")
    figures = {path: figure.value for path, figure in fitted.profile.figures().items()}
    # Without a base rates are what was reached: datasheet times fraction.
    assert figures["device.peak_bf16_tflop_per_s"] == pytest.approx(100 * 0.9, rel=0.05)
    assert figures["device.memory_gb_per_s"] == pytest.approx(1000 * 0.8, rel=0.05)
    assert figures["device.efficiency.norm"] == pytest.approx(0.7 / 0.8, rel=0.05)
    assert figures["device.efficiency.attention_forward"] == pytest.approx(0.5 / 0.9, rel=0.05)
    assert figures["device.launch_overhead_us"] == pytest.approx(2, rel=0.05)
    assert figures["node.gb_per_s"] * figures["node.collective_fraction"] == pytest.approx(100 * 0.8, rel=0.1)
    assert figures["node.gb_per_s"] * figures["node.send_fraction"] == pytest.approx(100 * 0.85, rel=0.1)
    assert figures["node.latency_us"] == pytest.approx(1, rel=0.25)
    assert figures["nic.gb_per_s"] * figures["nic.collective_fraction"] == pytest.approx(10 * 0.9, rel=0.1)
    assert figures["nic.latency_us"] == pytest.approx(3, rel=0.25)
    assert figures["collectives.launch_us"] == pytest.approx(4, rel=0.25)
    assert figures["collectives.compute_slowdown"] == pytest.approx(1.25, rel=0.05)
    assert fitted.profile.nic is not None and fitted.profile.nic.count == 4
    assert fitted.profile.evidence == "measured" and not fitted.warnings
    assert set(fitted.profile.collectives.protocols) == {"ll", "simple"}
    assert all(error.median < 0.05 for error in fitted.errors)
    rejected = sum(error.num_rejected for error in fitted.errors if error.name in COLLECTIVES)
    assert (rejected > 5) == (wrong > 0)


def test_a_base_gives_the_structure_and_the_measurements_the_fractions() -> None:
    slower = toy(node__collective_fraction=0.6, nic__send_fraction=0.5, collectives__launch_us=6.0)
    fitted = fit(machine(2), list(measured(slower, 2)), name="again", base=str(TOY))
    profile = fitted.profile
    assert profile.node.collective_fraction.value == pytest.approx(0.6, rel=0.05)
    assert profile.nic is not None and profile.nic.send_fraction.value == pytest.approx(0.5, rel=0.05)
    assert profile.device.efficiency.gemm.value == pytest.approx(0.9, rel=0.03)
    assert profile.collectives.launch_us.value == pytest.approx(6, rel=0.2)
    assert profile.device.memory_gb_per_s.value == 1000 and profile.device.gemm_tile == [128, 64]
    assert profile.device.efficiency.gemm.evidence == "measured"
    assert profile.device.memory_gb_per_s.evidence is None


def test_a_base_that_is_exceeded_is_another_device() -> None:
    with pytest.raises(FitError, match=r"node\.collective_fraction = 1\.[56]"):
        fit(machine(2), list(measured(toy(node__gb_per_s=200.0), 2)), name="again", base=str(TOY))


def test_a_base_is_for_the_library_that_was_measured() -> None:
    with pytest.raises(
        FitError, match=r"base h100-sxm: is for nccl, measured was gloo on .*; give another base or none"
    ):
        fit(machine(1).model_copy(update={"library": "gloo"}), list(measured(toy(), 1)), name="again", base="h100-sxm")


def test_one_card_for_four_devices_is_found_from_alone_and_together() -> None:
    shared = toy(nic__count=1, nic__contended_fraction=0.7)
    fitted = fit(machine(4), list(measured(shared, 4)), name="again")
    nic = fitted.profile.nic
    assert nic is not None and nic.count == 1 and nic.contended_fraction is not None
    assert nic.gb_per_s.value == pytest.approx(9, rel=0.1)
    assert nic.contended_fraction.value == pytest.approx(0.7 / 0.9, rel=0.1)


def test_one_process_takes_the_links_from_the_base() -> None:
    samples = [sample for sample in measured(toy(), 1) if sample.kind not in COLLECTIVES]
    fitted = fit(machine(1, 1), samples, name="one", base=str(TOY))
    assert fitted.profile.node == load_profile(str(TOY)).node
    with pytest.raises(FitError, match="collectives"):
        fit(machine(1, 1), samples, name="one")


def test_too_few_samples_name_what_is_missing() -> None:
    samples = [sample for sample in measured(toy(), 1) if sample.kind in ("gemm", "all_reduce", "launch")]
    with pytest.raises(FitError, match="attention_forward, attention_backward, pointwise, norm, optimizer"):
        fit(machine(1), samples, name="few")


def test_a_slow_pair_and_a_slow_card_are_named() -> None:
    samples = []
    for sample in measured(toy(), 2):
        slow = sample.ranks == (1, 3) or (sample.ranks and sample.ranks[0] == 2 and sample.stride == 4)
        factor = 2.0 if slow else 1.0
        samples.append(sample.model_copy(update={"seconds": tuple(factor * s for s in sample.seconds)}))
    fitted = fit(machine(2), samples, name="uneven")
    assert any("pairs of devices 1-3 send" in warning for warning in fitted.warnings)
    assert any("devices with index 2 of their nodes" in warning for warning in fitted.warnings)


def test_repeats_that_stand_out_do_not_count() -> None:
    assert settled([1.0, 1.01, 0.99, 1.02, 5.0]) == [1.0, 1.01, 0.99, 1.02]
    assert typical([2.0]) == 2.0
    assert settled([1.0, 1.0, 1.0, 9.0]) == [1.0, 1.0, 1.0]


def test_a_rejected_sample_is_counted_and_does_not_move_the_fit() -> None:
    sizes = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    times = 2 * sizes
    times[2] *= 10
    start = Parameter(name="rate", start=1.0, low=0.01, high=100.0)
    solution = solve(lambda values: list(sizes / values["rate"]), list(times), [start])
    assert solution.values["rate"] == pytest.approx(0.5, rel=0.01)
    error = solution.error("line")
    assert (error.num_samples, error.num_rejected) == (6, 1) and error.p90 < 0.01


def test_axes_have_every_level_and_each_card_by_itself() -> None:
    assert axes(1, 1) == []
    found = axes(2, 4)
    assert Axis(size=4, stride=1) in found and Axis(size=2, stride=2) in found and Axis(size=8, stride=1) in found
    assert [axis.only for axis in found if axis.only] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert Axis(size=2, stride=2).groups(8) == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert Axis(size=3, stride=1).groups(4) == [(0, 1, 2)]


def test_single_precision_has_a_fraction_of_its_own() -> None:
    sections = toy().model_dump(exclude_none=True)
    sections["device"]["peak_fp32_tflop_per_s"] = 20.0
    sections["device"]["efficiency"]["gemm_fp32"] = 0.6
    profile = Profile.model_validate(sections)
    device = uniform_cluster("toy", profile, 1, 4, name="toy").device
    singles = (what for what in device_plan(SIZES, ["float32"], accelerator=False) if what.kind == "gemm")
    samples = [
        *measured(profile, 1),
        *(Sample(**what.model_dump(), seconds=(device_s(device, what),)) for what in singles),
    ]
    figures = {path: f.value for path, f in fit(machine(1), samples, name="again").profile.figures().items()}
    assert figures["device.peak_fp32_tflop_per_s"] == pytest.approx(20 * 0.6, rel=0.05)
    assert figures["device.efficiency.gemm_fp32"] == 1
