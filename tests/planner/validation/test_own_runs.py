from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hardware_profiles.assemble import uniform_cluster
from hardware_profiles.load import load_profile
from hardware_profiles.schema import Profile
from planner.calibration.shipped import Shipped, shipped
from planner.validation import clusters, own_report
from planner.validation.cases import Case
from planner.validation.own_runs import CalibrationError, OwnFit, fit_runs
from planner.validation.pricing import price, price_with
from tests.planner.validation.rows import case

OWN = {"gemm": 1.15, "attention": 1.3, "tp": 1.2, "dp": 1.2}


def run(**fields: object) -> Case:
    """A small model on one node of H100."""
    return case(
        **{
            "hardware": "H100-80GB-SXM", "framework": "torchtitan", "compiled": True, "precision": "bf16", "layers": 8,
            "hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8, "vocab": 32000, "seq_len": 8192,
            "gated_mlp": True, "global_batch": 16, "micro_batch": 1, "tp": 2, "zero_stage": 3,
            "sharding": "fsdp", "recompute": "none",
        }
        | fields
    )  # fmt: skip


def measured(own: dict[str, float] = OWN) -> list[Case]:
    """Runs of a cluster where classes of operations take longer than the shipped constants have it."""
    layouts = [{"seq_len": seq_len, "tp": tp} for seq_len in (2048, 8192, 32768) for tp in (1, 2, 8)]
    runs = [run(id=f"run {i}", group=f"run {i}", **layout) for i, layout in enumerate(layouts)]
    return [replace(one, step_time_s=price_with(one, shipped().values, own).step_s) for one in runs]


@pytest.fixture(scope="module")
def found() -> Iterator[OwnFit]:
    """What is fitted on top of shipped constants that are all 1."""
    nothing = Shipped(date="2025-01-31", rows=0, sources=0, constants={})
    with pytest.MonkeyPatch.context() as patch:
        for module in ("tests.planner.validation.test_own_runs", "planner.validation.own_runs"):
            patch.setattr(f"{module}.shipped", lambda: nothing)
        yield fit_runs(measured())


def test_the_own_figures_are_recovered(found: OwnFit) -> None:
    assert found.profile == "h100-sxm"
    figures = {own.figure: own for own in found.figures}
    assert {own.shipped for own in found.figures} == {1.0}
    assert figures["gemm"].fitted == pytest.approx(1.15, rel=0.05)
    assert figures["attention"].fitted == pytest.approx(1.3, rel=0.05)
    assert figures["node"].fitted == pytest.approx(1.2, rel=0.1)
    assert "network" not in figures and "gemm-fp8" not in figures
    assert max(abs(o.time_error or 0) for o in found.after) < 0.02 < max(abs(o.time_error or 0) for o in found.before)


def test_the_profile_prices_as_fitted(found: OwnFit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.toml"
    own_report.write_profile(found, path, name="mine", runs=Path("runs.json"), date="2025-01-31")
    mine = load_profile(str(path))
    assert isinstance(mine, Profile)
    assert mine.device.efficiency.gemm.evidence == "measured"
    assert "runs.json, 2025-01-31" in (mine.device.efficiency.gemm.source or "")
    monkeypatch.setattr(
        "planner.validation.layout.cluster_of",
        lambda *_, gpus, **__: clusters.Machine(uniform_cluster("mine", mine, 1, gpus, name="mine")),
    )
    for outcome in found.after:
        assert outcome.priced is not None
        # The time to start a collective is not scaled by what it reaches.
        assert price(outcome.case, calibrated=False).step_s == pytest.approx(outcome.priced.step_s, rel=0.04), (
            outcome.case.id
        )


def test_a_figure_with_too_few_runs_stays_as_shipped() -> None:
    found = fit_runs(measured()[:1])
    assert all(own.runs <= 1 and not own.informed for own in found.figures)
    assert all(own.fitted == pytest.approx(own.shipped) for own in found.figures)
    assert found.figures[0].refinement("runs").evidence == "derived"
    assert "as shipped, 2 runs are needed" in own_report.render(found, width=120)


def test_runs_that_cannot_be_used_are_named() -> None:
    with pytest.raises(CalibrationError, match=r"no usable run among 1 rows \('one': trust C"):
        fit_runs([run(trust="C")])
    with pytest.raises(CalibrationError, match="the file has none"):
        fit_runs([])
    with pytest.raises(CalibrationError, match=r"run 'odd' cannot be priced: .* 7 "):
        fit_runs([*measured()[:2], run(id="odd", gpus=8, tp=7)])


def test_runs_are_of_one_device() -> None:
    runs = [*measured()[:2], *(replace(one, hardware="A100-80GB-SXM") for one in measured()[:2])]
    with pytest.raises(CalibrationError, match="several devices, A100-80GB-SXM, H100-80GB-SXM: name one"):
        fit_runs(runs)
    assert fit_runs(runs, "A100-80GB-SXM").profile == fit_runs(runs, "a100-80gb").profile == "a100-80gb"
    with pytest.raises(CalibrationError, match="no usable run of B200"):
        fit_runs(runs, "B200")
