from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.breakdown import Breakdown, Term
from planner import plan_file
from planner.errors import OutputExistsError, PlanFileError
from planner.job import Constraints, Job
from planner.plan import (
    SCHEMA_VERSION,
    Candidate,
    ExpertPlacement,
    ParamLayout,
    Plan,
    PlanInputs,
    Prediction,
    SearchReport,
    Stage,
    StageMemory,
)
from planner.solvers.search import divisors
from tests import factories

TOP_LEVEL = [
    "schema_version",
    "inputs",
    "mesh",
    "layouts",
    "experts",
    "operations",
    "pipeline",
    "recompute",
    "recomputed_blocks",
    "predicted",
    "search",
    "warnings",
]
REQUIRED = ["schema_version", "inputs", "mesh", "pipeline", "recompute"]

SCHEDULES = [
    ("1f1b", 1),
    ("gpipe", 1),
    ("interleaved-1f1b", 3),
    ("looped-bfs", 2),
    ("zb-h1", 2),
    ("zb-v", 2),
    ("dualpipe-v", 2),
]
SPLIT = ("zb-h1", "zb-v", "dualpipe-v")
names = st.text(min_size=1, max_size=12)
sizes = st.integers(1, 64)
recompute = st.sampled_from(["none", "selective", "full"])
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
placements = st.just("R") | st.integers(0, 12).map("S({})".format)


@st.composite
def terms(draw: st.DrawFn) -> Term:
    low, middle, high = sorted(draw(st.tuples(*[st.floats(1e-9, 1e6)] * 3)))
    evidence = draw(st.sampled_from(["measured", "datasheet", "derived"]))
    return Term(name=draw(names), seconds=middle, low_s=low, high_s=high, evidence=evidence)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    dp_shard, cp, tp, pp = draw(sizes), draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(1, 5))
    context = draw(st.sampled_from(["all_gather", "ring", "ulysses", *(["ulysses_ring"] if cp in (4, 6, 8) else [])]))
    schedule, num_chunks = draw(st.sampled_from(SCHEDULES))
    policy, ep = draw(recompute), draw(st.sampled_from(divisors(dp_shard * cp * tp)))
    sequence_parallel = draw(st.booleans()) or (ep > 1 and tp > 1)
    candidate = Candidate(
        pp=pp,
        dp_replicate=draw(sizes),
        dp_shard=dp_shard,
        cp=cp,
        tp=tp,
        sequence_parallel=sequence_parallel,
        zero_stage=0 if dp_shard * cp == 1 else draw(st.integers(1, 2 if schedule in SPLIT else 3)),
        context=context,
        ulysses=2 if context == "ulysses_ring" else 1,
        ep=ep,
        microbatch_size=draw(sizes),
        num_microbatches=pp * draw(st.integers(2, 9)),
        schedule=schedule,
        num_chunks=num_chunks,
        recompute=policy,
        recomputed_blocks=None if policy == "none" else draw(st.none() | sizes),
    )
    stages = pp * num_chunks
    job = Job(
        global_batch=candidate.data_parallel * candidate.microbatch_size * candidate.num_microbatches,
        seq_len=2 * cp * tp * draw(st.integers(1, 2**18)),
        precision=draw(names),
        optimizer=draw(names),
    )
    modules = draw(st.lists(names, unique=True, min_size=stages, max_size=stages + 4))
    breakdown = Breakdown(tuple(draw(st.lists(terms(), min_size=1, max_size=6))))
    priced = draw(st.integers(1, 10**9))
    rejected = draw(st.dictionaries(names, st.integers(0, 10**9), max_size=4))
    axes = st.sampled_from(["dp_replicate", "dp_shard", "cp", "tp"])
    parts = st.dictionaries(names, st.integers(0, 2**50), max_size=5)
    return Plan(
        inputs=PlanInputs(
            model=draw(names),
            model_sha256=draw(hashes),
            num_parameters=draw(st.integers(0, 10**13)),
            hardware=draw(names),
            hardware_sha256=draw(hashes),
            hardware_evidence=draw(st.sampled_from(["datasheet", "measured"])),
            device_memory_bytes=draw(st.integers(1, 2**45)),
            num_devices=candidate.num_devices,
            job=job,
            constraints=Constraints(
                max_tp=draw(st.none() | sizes),
                recompute=draw(st.none() | recompute),
                memory_fraction=draw(st.floats(0.01, 1.0)),
            ),
            torch_version=draw(names),
        ),
        candidate=candidate,
        layouts=tuple(
            ParamLayout(
                pattern=pattern, placements=draw(st.dictionaries(axes, placements)), num_chunks=draw(st.integers(1, 4))
            )
            for pattern in draw(st.lists(names, unique=True, min_size=1, max_size=4))
        ),
        experts=() if ep == 1 else (ExpertPlacement(block="layers.*", ranks=tuple((rank,) for rank in range(ep))),),
        stages=tuple(Stage(modules=tuple(modules[stage::stages])) for stage in range(stages)),
        predicted=Prediction(
            breakdown=breakdown,
            tokens_per_s=job.global_batch * job.seq_len / breakdown.step_s,
            mfu=draw(st.floats(0.0, 1.0)),
            memory=tuple(StageMemory(parts=draw(parts)) for _ in range(pp)),
            assumptions=tuple(draw(st.lists(st.text(max_size=20), max_size=3))),
        ),
        search=SearchReport(
            candidates=priced + sum(rejected.values()),
            priced=priced,
            rejected=rejected,
            bound_s=breakdown.step_s * draw(st.floats(0.01, 1.0)),
        ),
        warnings=tuple(draw(st.lists(st.text(max_size=20), max_size=3))),
    )


@given(plans())
def test_a_plan_survives_its_file_exactly(plan: Plan) -> None:
    text = plan_file.to_json(plan)
    read = plan_file.from_json(text, "plan.json")
    assert read == plan
    assert plan_file.to_json(read) == text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.text(max_size=5), values, max_size=2),
    max_leaves=3,
)


@given(st.data())
def test_a_damaged_file_is_a_plan_or_a_typed_error(data: st.DataObject) -> None:
    content = json.loads(plan_file.to_json(factories.plan()))
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(json_values)
    with contextlib.suppress(PlanFileError):
        assert isinstance(plan_file.from_json(json.dumps(content), "damaged.json"), Plan)


def test_file_has_the_agreed_keys_and_nothing_that_differs_between_runs() -> None:
    text = plan_file.to_json(factories.plan())
    content = json.loads(text)
    assert list(content) == TOP_LEVEL
    assert text.endswith("}\n")
    assert [axis["name"] for axis in content["mesh"]["axes"]] == ["pp", "dp_replicate", "dp_shard", "cp", "tp"]
    assert content["mesh"]["sharding"] == {
        "sequence_parallel": True,
        "zero_stage": 3,
        "context": "all_gather",
        "ulysses": 1,
        "ep": 1,
    }
    assert set(content["predicted"]["step_s"]) == {"value", "low", "high"}
    assert set(content["predicted"]["breakdown"][0]) == {"term", "seconds", "low_s", "high_s", "evidence"}


def test_order_of_mappings_does_not_change_the_bytes() -> None:
    plan = factories.plan()
    turned = replace(
        plan,
        search=replace(plan.search, rejected=dict(reversed(plan.search.rejected.items()))),
        layouts=tuple(replace(layout, placements=dict(reversed(layout.placements.items()))) for layout in plan.layouts),
    )
    assert plan_file.to_json(turned) == plan_file.to_json(plan)


def test_json_schema_describes_the_file() -> None:
    schema = plan_file.json_schema()
    assert list(schema["properties"]) == TOP_LEVEL
    assert schema["required"] == REQUIRED
    assert schema["additionalProperties"] is False
    assert schema["properties"]["schema_version"]["const"] == SCHEMA_VERSION


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "plan.json: line 1, column 1: Expecting value: a plan file is one JSON object"),
        ('{"schema_version": 1,\n', "plan.json: line 2, column 1: Expecting property name enclosed in double quotes"),
        ("[1]", "plan.json: found [1]: a plan file is one JSON object"),
        ("[" * 100_000, "plan.json: nested too deeply for a plan file"),
        ("{}", "plan.json: schema_version = null: this Meshwright reads version 1"),
        ('{"schema_version": 2}', "plan.json: schema_version = 2: this Meshwright reads version 1"),
        ('{"recompute": "none", "recompute": "full"}', 'plan.json: key "recompute" stands twice in one object'),
        ('{"schema_version": 1}', "plan.json: inputs: required key is missing"),
    ],
)
def test_text_that_is_no_plan_file(text: str, message: str) -> None:
    with pytest.raises(PlanFileError) as error:
        plan_file.from_json(text, "plan.json")
    assert str(error.value).startswith(message)


def _set(*path: str | int, to: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("surprise", to=1), "surprise = 1: unknown key"),
        (_set("mesh", "axes", 2, "size", to=0), "mesh.axes[2].size = 0: Input should be greater than or equal to 1"),
        (_set("mesh", "axes", 2, "size", to="4"), 'mesh.axes[2].size = "4": Input should be a valid integer'),
        (_set("recompute", to="some"), "recompute = \"some\": Input should be 'none', 'selective', 'half' or 'full'"),
        (_set("layouts", 0, "placements", to={"tp": "S(x)"}), 'layouts[0].placements.tp = "S(x)": String should match'),
        (_set("layouts", 0, "placements", to={"pp": "R"}), 'layouts[0].placements.pp.[key] = "pp": Input should be'),
        (_set("predicted", "mfu", to=float("inf")), "predicted.mfu = Infinity: Input should be a finite number"),
        (
            _set("mesh", "axes", 3, "name", to="pp"),
            "mesh.axes = pp, dp_replicate, dp_shard, pp, tp: the axes are pp, dp_replicate, dp_shard, cp, tp, from",
        ),
        (
            _set("inputs", "num_devices", to=63),
            "inputs.num_devices = 63: must be the product of the axes, pp 4 * dp_replicate 1 * dp_shard 4 * cp 1 * tp",
        ),
        (
            _set("mesh", "sharding", "zero_stage", to=0),
            "mesh.sharding.zero_stage = 0: must be 0 where dp_shard * cp is 1 and 1, 2 or 3 elsewhere; dp_shard is",
        ),
        (
            _set("pipeline", "num_microbatches", to=31),
            "inputs.job.global_batch = 128: must be dp_replicate * dp_shard 4 * num_microbatches 31 * microbatch_size",
        ),
        (
            _set("pipeline", "stages", to=[{"modules": ["a"]}]),
            "pipeline.stages = 1 stages: must be as many as pp, 4",
        ),
        (
            _set("pipeline", "stages", 1, "modules", to=["layers.0"]),
            'pipeline.stages: module "layers.0" stands 2 times: must stand once',
        ),
        (
            _set("layouts", 1, "pattern", to="embedding.weight"),
            'layouts: pattern "embedding.weight" stands 2 times: must stand once',
        ),
        (
            _set("predicted", "memory_bytes", 2, "total", to=7),
            "predicted.memory_bytes[2].total = 7: must be the sum of",
        ),
        (_set("predicted", "memory_bytes", to=[]), "predicted.memory_bytes = 0 entries: must be one for each of the 4"),
        (_set("predicted", "breakdown", 0, "low_s", to=4.0), "predicted.breakdown[0].seconds = 3.0: must lie between"),
        (
            _set("predicted", "step_s", "value", to=11.0),
            "predicted.step_s.value = 11.0: must be the sum over predicted.breakdown, 12.0",
        ),
        (_set("predicted", "tokens_per_s", to=1.0), "predicted.tokens_per_s = 1.0: must be global_batch 128 * seq_len"),
        (_set("search", "priced", to=1), "search.candidates = 1200: must be priced + all rejected, 1001"),
        (_set("search", "bound_s", to=13.0), "search.bound_s = 13.0: must not be above step_s, 12.0"),
        (_set("search", "gap", to=0.5), "search.gap = 0.5: must be step_s / bound_s - 1, 0.0"),
    ],
)
def test_a_broken_rule_is_named_with_file_field_and_value(change: Callable[[Any], None], message: str) -> None:
    content = json.loads(plan_file.to_json(factories.plan()))
    change(content)
    with pytest.raises(PlanFileError) as error:
        plan_file.from_json(json.dumps(content), "broken.json")
    assert f"broken.json: {message}" in str(error.value)


def test_a_plan_that_contradicts_itself_is_our_bug_and_never_written(tmp_path: Path) -> None:
    plan = factories.plan()
    wrong = replace(plan, candidate=replace(plan.candidate, tp=8))
    with pytest.raises(ValueError, match=r"inputs\.num_devices = 64"):
        plan_file.write(wrong, tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []


def test_write_gives_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan_file.write(factories.plan(), path)
    assert path.read_text() == plan_file.to_json(factories.plan())
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_replaced_without_force(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("precious")
    with pytest.raises(OutputExistsError, match=r"plan\.json exists already; nothing was written"):
        plan_file.write(factories.plan(), path)
    assert path.read_text() == "precious"
    plan_file.write(factories.plan(), path, force=True)
    assert plan_file.from_json(path.read_text(), "plan.json") == factories.plan()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appears_while_writing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    monkeypatch.setattr(plan_file, "check_output", lambda *_args, **_options: path.write_text("precious"))
    with pytest.raises(OutputExistsError):
        plan_file.write(factories.plan(), path)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PlanFileError, match=r"cannot write .*plan\.json: No space left on device"):
        plan_file.write(factories.plan(), path, force=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PlanFileError, match=r"there is no directory .*missing; create it first"):
        plan_file.check_output(tmp_path / "missing" / "plan.json", force=False)
    with pytest.raises(PlanFileError, match="it is a directory; name a file in it"):
        plan_file.check_output(tmp_path, force=True)
