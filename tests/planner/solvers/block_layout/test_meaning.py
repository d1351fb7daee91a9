"""Layouts that plans mean over ``cp`` and with ``ep``: what attention, borders, parameters and experts get."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from planner.errors import UsageError
from planner.job import Job
from planner.layouts.model import analyse_model, param_layouts
from planner.layouts.placements import BROADCAST, REPLICATE, shard
from planner.plan import Candidate, Plan, PlanInputs, Stage
from planner.solvers.block_layout.detail import Detail, PlacedOp
from planner.solvers.block_layout.planned import PlacedBlocks, placed_blocks, plan_layouts, planned_layouts
from planner.solvers.setting import Setting
from tests.planner.solvers.small import setting

SEQ_LEN = 64
KINDS = {"all_gather": "context_all_gather", "ring": "ring"}


def plan_of(case: Setting, **degrees: Any) -> Plan:
    named: dict[str, Any] = {
        "pp": 1, "dp_replicate": 1, "dp_shard": 1, "cp": 1, "tp": 1, "sequence_parallel": False, "zero_stage": 0,
        "microbatch_size": 2, "num_microbatches": 1, "recompute": "none",
    }  # fmt: skip
    c = Candidate(**(named | degrees))
    job = Job(global_batch=2 * c.data_parallel, seq_len=SEQ_LEN)
    inputs = PlanInputs(model="m", hardware="h", num_devices=c.num_devices, job=job)
    return Plan(inputs=inputs, candidate=c, stages=(Stage(modules=("a",)),))


def layers(case: Setting, found: PlacedBlocks) -> tuple[int, Detail]:
    b = next(segment.block for segment in reversed(case.graph.segments) if segment.prefix)
    return b, found.blocks[b]


def named(case: Setting, block: int, found: Detail, name: str) -> PlacedOp:
    return next(op for op in found.ops if case.graph.blocks[block].ops[op.ops[0]].name == name)


def solved(family: str = "gqa", **degrees: Any) -> tuple[Setting, PlacedBlocks]:
    case = setting(family, seq_len=SEQ_LEN)
    return case, placed_blocks(case, plan_of(case, **degrees))


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("context", ["all_gather", "ring"])
def test_attention_is_run_as_the_plan_says(context: str, tp: int) -> None:
    case, found = solved(cp=2, tp=tp, sequence_parallel=tp > 1, context=context)
    assert (found.mesh.axes, found.mesh.sizes) == (("cp", "tp"), (2, tp))
    b, detail = layers(case, found)
    attention = named(case, b, detail, "attention")
    assert attention.implementations == (KINDS[context], "local")
    query, key, value = (layout for _, layout in attention.inputs[:3])
    heads = shard(1) if tp > 1 else REPLICATE
    assert query == (shard(2), heads)
    assert key == value == ((shard(2) if context == "ring" else BROADCAST), heads)


def test_ulysses_divides_the_heads_that_tp_leaves() -> None:
    case, found = solved(cp=2, tp=2, sequence_parallel=True, context="ulysses")
    b, detail = layers(case, found)
    attention = named(case, b, detail, "attention")
    assert attention.implementations == ("local", "local")
    assert attention.inputs[0][1] == attention.outputs[0][1] == (shard(1, 2), shard(1))


def test_rings_join_what_ulysses_leaves() -> None:
    case, found = solved(cp=4, ulysses=2, context="ulysses_ring")
    assert (found.mesh.axes, found.mesh.sizes) == (("cp_ring", "cp_ulysses", "tp"), (2, 2, 1))
    b, detail = layers(case, found)
    attention = named(case, b, detail, "attention")
    assert attention.implementations == ("ring", "local", "local")
    assert attention.inputs[0][1] == (shard(2), shard(1), REPLICATE)


@pytest.mark.parametrize("tp", [1, 2])
def test_activations_between_blocks_lie_along_the_sequence(tp: int) -> None:
    case, found = solved(cp=2, tp=tp, sequence_parallel=tp > 1, context="ring")
    _, detail = layers(case, found)
    along = shard(1)
    for border in (detail.entering, detail.exiting):
        assert set(border.values()) == {(along, along if tp > 1 else REPLICATE)}


def test_gradients_of_parameters_stay_partial_over_cp() -> None:
    """Data parallelism adds them up."""
    _, found = solved(cp=2, context="all_gather")
    for detail in found.blocks:
        assert set(detail.params.values()) == {(BROADCAST, REPLICATE)}


@pytest.mark.parametrize(("cp", "tp"), [(1, 2), (2, 1), (2, 2)])
def test_experts_see_the_tokens_of_their_own_rank(cp: int, tp: int) -> None:
    case, found = solved("mixtral", cp=cp, tp=tp, sequence_parallel=tp > 1, ep=2, context="ring", dp_shard=2)
    b, detail = layers(case, found)
    node = next(op for op in detail.ops if len(op.ops) > 3 and case.graph.blocks[b].ops[op.ops[-1]].name == "sum")
    assert set(node.implementations) == {"local"}
    kinds: dict[bool, set[str]] = {True: set(), False: set()}
    for v, layout in node.inputs:
        per_token = case.graph.blocks[b].values[v].dims[0].per_batch
        kinds[per_token] |= {p.kind for p, size in zip(layout, found.mesh.sizes, strict=True) if size > 1}
    assert kinds == {True: {"S"}, False: {"B"}}


@pytest.mark.parametrize("degrees", [{"tp": 2}, {"tp": 2, "sequence_parallel": True}, {"cp": 2, "context": "ring"}])
def test_what_a_plan_says_of_its_operations_is_kept(degrees: dict[str, Any]) -> None:
    case = setting("gqa", seq_len=SEQ_LEN)
    plan = plan_of(case, **degrees)
    said = planned_layouts(case, plan.candidate, analyse_model(case.graph).at(plan.candidate.tp))
    free, kept = placed_blocks(case, plan), placed_blocks(case, replace(plan, operations=said))
    assert [detail.ops for detail in free.blocks] == [detail.ops for detail in kept.blocks]


def test_a_choice_that_fits_nothing_is_refused() -> None:
    """A product that would need its weight whole, which lies in parts."""
    case = setting("gqa", seq_len=SEQ_LEN)
    plan = plan_of(case, tp=2)
    said = list(planned_layouts(case, plan.candidate, analyse_model(case.graph).at(2)))
    index = next(i for i, block in enumerate(said) if block.calls > 1)
    ops = list(said[index].operations)
    at = next(i for i, op in enumerate(ops) if op.operation == "mm" and op.outputs == ("P",))
    ops[at] = replace(ops[at], inputs=("R", "R"), outputs=("R",))
    said[index] = replace(said[index], operations=tuple(ops))
    with pytest.raises(UsageError, match="cannot be laid out over tp 2"):
        placed_blocks(case, replace(plan, operations=tuple(said)))


def test_operations_of_another_model_are_refused() -> None:
    case, other = setting("gqa", seq_len=SEQ_LEN), setting("gpt", seq_len=SEQ_LEN)
    plan = plan_of(case, tp=2)
    said = planned_layouts(other, plan.candidate, analyse_model(other.graph).at(2))
    with pytest.raises(UsageError, match=r"the plan's operations are not those of|the plan says how"):
        placed_blocks(case, replace(plan, operations=said))


@pytest.mark.parametrize("family", ["gqa", "mqa", "gpt", "bert", "qwen", "mixtral", "mla", "vit", "resnet", "thirds"])
def test_a_plans_own_layouts_mean_what_they_were_made_from(family: str) -> None:
    case = setting(family, seq_len=SEQ_LEN)
    layouts = analyse_model(case.graph)
    for tp in (2, 4):
        if layouts.obstacle(tp) is None:
            plan = plan_of(case, tp=tp)
            said = replace(plan, layouts=param_layouts(layouts, plan.candidate))
            found = plan_layouts(case.graph, said).at(tp)
            assert [dict(b.params) for b in found] == [dict(b.params) for b in layouts.at(tp)]


def test_a_parameter_that_the_plan_leaves_whole_stays_whole() -> None:
    case = setting("gqa", seq_len=SEQ_LEN)
    plan = plan_of(case, tp=2)
    said = tuple(
        replace(layout, placements={**layout.placements, "tp": "R"}) if "feed_forward" in layout.pattern else layout
        for layout in param_layouts(analyse_model(case.graph), plan.candidate)
    )
    _, detail = layers(case, placed_blocks(case, replace(plan, layouts=said)))
    assert {detail.params[fqn] for fqn in detail.params if "feed_forward" in fqn} == {(REPLICATE,)}
    assert (shard(0),) in {detail.params[fqn] for fqn in detail.params if "attention" in fqn}


def test_a_parameter_without_layout_is_named() -> None:
    case = setting("gqa", seq_len=SEQ_LEN)
    plan = plan_of(case, tp=2)
    said = param_layouts(analyse_model(case.graph), plan.candidate)[1:]
    with pytest.raises(UsageError, match="layouts of the plan name no parameter"):
        placed_blocks(case, replace(plan, layouts=said))
