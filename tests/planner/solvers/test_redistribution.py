"""Prices of redistribution: by hand where the best way is known, against networkx over all ways elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import ceil, inf, prod

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels import communication
from hardware_profiles.cluster import Group
from hardware_profiles.load import load_cluster
from hardware_profiles.topology import group
from planner.layouts.placements import REPLICATE, Layout, Placement, Shape, parse, shard
from planner.layouts.redistribution import Collective, absolute, moves
from planner.solvers import redistribution
from planner.solvers.redistribution import Redistributor, Tensor

NODES = "h100-sxm:8x8"
MIB = 2**20


@cache
def groups(*sizes: int, cluster: str = NODES) -> tuple[Group, ...]:
    """Of a mesh from outer to inner."""
    strides = [prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    return tuple(
        group(load_cluster(cluster), size=size, stride=stride) for size, stride in zip(sizes, strides, strict=True)
    )


def layout(text: str) -> Layout:
    return tuple(parse(word) for word in text.split())


def seconds(way: Redistributor, tensor: Tensor, source: str, target: str) -> tuple[float, float]:
    table = way.table(tensor, [layout(source)], [layout(target)])
    return float(table.forward_s[0, 0]), float(table.backward_s[0, 0])


def told(way: Redistributor, tensor: Tensor, source: str, target: str) -> list[tuple[int, Collective, Collective]]:
    """Axis and collectives of every move."""
    steps = way.path(tensor, layout(source), layout(target))
    return [(step.move.axis, step.move.forward, step.move.backward) for step in steps]


def test_one_axis_by_hand() -> None:
    [ranks] = groups(8)
    way, tensor, size = Redistributor((ranks,)), Tensor((1024, 4096), 2), 1024 * 4096 * 2
    gather, scatter = communication.all_gather_s(ranks, size), communication.reduce_scatter_s(ranks, size)
    reduce, exchange = communication.all_reduce_s(ranks, size), communication.all_to_all_s(ranks, size / 8)
    assert seconds(way, tensor, "S(0)", "R") == (gather, 0)
    assert seconds(way, tensor, "S(0)", "B") == (gather, scatter)
    assert seconds(way, tensor, "P", "S(1)") == (scatter, gather)
    assert seconds(way, tensor, "P", "R") == (reduce, 0)
    assert seconds(way, tensor, "P", "B") == (reduce, reduce)
    assert seconds(way, tensor, "R", "S(0)") == (0, gather)
    assert seconds(way, tensor, "R", "B") == (0, reduce)
    assert seconds(way, tensor, "S(0)", "S(1)") == (exchange, exchange)
    for free in ("S(0) P", "R P", "B P", "B R", "B S(1)", "R R", "B B"):
        assert seconds(way, tensor, *free.split()) == (0, 0)
    assert reduce <= gather + scatter < 1.5 * reduce


def test_a_tensor_without_gradient_costs_nothing_backward() -> None:
    way, tensor = Redistributor(groups(8)), Tensor((1024, 4096), 2, gradient_bytes=0)
    for source, target in (("S(0)", "B"), ("P", "B"), ("R", "S(0)"), ("S(0)", "S(1)")):
        assert seconds(way, tensor, source, target)[1] == 0
    assert seconds(way, tensor, "R", "B") == (0, 0)


def test_gradients_may_be_communicated_wider_than_values() -> None:
    """Parameters gathered in 2 bytes, their gradients reduced in 4."""
    (ranks,) = groups(8)
    way, tensor = Redistributor((ranks,)), Tensor((1024, 4096), 2, gradient_bytes=4)
    whole = 1024 * 4096
    assert seconds(way, tensor, "S(0)", "B") == (
        communication.all_gather_s(ranks, 2 * whole),
        communication.reduce_scatter_s(ranks, 4 * whole),
    )


def test_a_padded_shard_is_moved_whole() -> None:
    [ranks] = groups(8)
    way = Redistributor((ranks,))
    assert seconds(way, Tensor((1001, 64), 4), "S(0)", "R")[0] == communication.all_gather_s(ranks, 8 * 126 * 64 * 4)


def test_the_slow_axis_is_gathered_first_while_little_is_held() -> None:
    between, inside = groups(8, 8)
    way, size = Redistributor((between, inside)), 4096 * 4096
    first, then = communication.all_gather_s(between, size / 8), communication.all_gather_s(inside, size)
    assert told(way, Tensor((4096, 4096), 1), "S(0) S(0)", "R R") == [
        (0, "all_gather", "local"),
        (1, "all_gather", "local"),
    ]
    assert seconds(way, Tensor((4096, 4096), 1), "S(0) S(0)", "R R")[0] == pytest.approx(first + then)
    uneven = Tensor((4093, 3), 1024)
    assert [axis for axis, *_ in told(way, uneven, "S(0) S(0)", "R R")] == [1, 0]


def test_slicing_first_moves_less() -> None:
    between, inside = groups(8, 8)
    way, tensor = Redistributor((between, inside), backward_weight=0), Tensor((4096, 4096), 1)
    size = 4096 * 4096 / 8
    assert told(way, tensor, "S(0) R", "R S(1)") == [(1, "local", "all_gather"), (0, "all_gather", "local")]
    assert seconds(way, tensor, "S(0) R", "R S(1)") == (
        communication.all_gather_s(between, size),
        communication.all_gather_s(inside, size),
    )


def test_a_sum_over_two_axes_is_scattered_reduced_and_gathered() -> None:
    between, inside = groups(8, 8)
    way, size = Redistributor((between, inside)), 64 * MIB
    found = told(way, Tensor((8192, 8192), 1), "P P", "R R")
    assert [(axis, forward) for axis, forward, _ in found] == [
        (1, "reduce_scatter"),
        (0, "all_reduce"),
        (1, "all_gather"),
    ]
    assert seconds(way, Tensor((8192, 8192), 1), "P P", "R R") == pytest.approx(
        (
            communication.reduce_scatter_s(inside, size)
            + communication.all_reduce_s(between, size / 8)
            + communication.all_gather_s(inside, size),
            communication.all_gather_s(inside, size),
        )
    )


def test_batch_and_sequence_of_one_dim_do_not_mind_each_other() -> None:
    """``[batch, seq]`` in one dim: what shards the batch is gathered as if the other axis were not there."""
    between, inside = groups(8, 8)
    tensor = Tensor((16 * 4096, 512), 2)
    assert told(Redistributor((between, inside)), tensor, "S(0) S(0/16)", "R S(0/16)") == [(0, "all_gather", "local")]
    assert told(Redistributor((between, inside)), tensor, "S(0) S(0/8)", "S(0) S(0)") == []


def test_what_is_no_layout_of_digits_leads_nowhere_but_to_itself() -> None:
    way, strange, plain = Redistributor(groups(8, 8)), layout("S(0/2) S(0)"), layout("R R")
    table = way.table(Tensor((1024,), 2), [strange, plain], [plain, strange])
    assert np.array_equal(table.forward_s, [[inf, 0], [0, inf]])
    assert np.array_equal(table.backward_s, [[inf, 0], [0, inf]])
    assert np.array_equal(table.cost_s, [[inf, 0], [0, inf]])
    assert table.path(0, 1) == ()
    with pytest.raises(ValueError, match="no sequence of moves"):
        table.path(0, 0)


def test_weights_choose_the_path() -> None:
    """A sum over two axes is best scattered first, unless the backward pass counts more: it would have to gather."""
    tensor = Tensor((4096, 4096), 2)
    forward_s, backward_s = seconds(Redistributor(groups(8, 8), 1, 0), tensor, "P P", "R R")
    for weights in ((1, 100), (0, 1)):
        plain_forward_s, plain_backward_s = seconds(Redistributor(groups(8, 8), *weights), tensor, "P P", "R R")
        assert forward_s < plain_forward_s
        assert backward_s > plain_backward_s == 0


def test_equal_collectives_are_priced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Group, float]] = []
    for name, price in list(redistribution._PRICES.items()):

        def counted(ranks: Group, num_bytes: float, name: str = name, price=price) -> float:  # type: ignore[no-untyped-def]
            asked.append((name, ranks, num_bytes))
            return float(price(ranks, num_bytes))

        monkeypatch.setitem(redistribution._PRICES, name, counted)
    way = Redistributor(groups(8, 8))
    ends = [layout(f"{a} {b}") for a in ("R", "B", "P", "S(0)", "S(1)") for b in ("R", "B", "P", "S(0)", "S(1)")]
    table = way.table(Tensor((4096, 4096), 2), ends, ends)
    assert len(asked) == len(set(asked)) <= 2 * 4 * 3
    assert way.table(Tensor((4096, 4096), 2), list(ends), list(ends)) is table
    before = len(asked)
    way.table(Tensor((2048, 8192), 2), ends, ends)
    assert len(asked) == before


SIZES = st.sampled_from([(8,), (2, 4), (8, 2), (4, 1), (2, 2, 2), (8, 2, 4)])
SHAPES = st.tuples(st.sampled_from([64, 48, 1000, 7]), st.sampled_from([4096, 30_000, 12_345]))
PLACEMENTS = [parse(text) for text in ("R", "B", "P", "S(0)", "S(1)", "S(0/8)", "S(1/3)")]


@st.composite
def questions(draw: st.DrawFn) -> tuple[tuple[int, ...], Shape, list[Layout], list[Layout], tuple[float, float]]:
    sizes = draw(SIZES)
    ends = st.lists(st.tuples(*(st.sampled_from(PLACEMENTS) for _ in sizes)), min_size=1, max_size=4)
    return (
        sizes,
        draw(SHAPES),
        draw(ends),
        draw(ends),
        draw(st.sampled_from([(1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (1.0, 5.0)])),
    )


def price(name: Collective, ranks: Group, size: float) -> float:
    if name == "local":
        return 0.0
    return float(getattr(communication, f"{name}_s")(ranks, size))


def all_ways(
    mesh: Sequence[Group], tensor: Tensor, known: Sequence[Layout], weights: tuple[float, float]
) -> nx.DiGraph[Layout]:
    """Every layout that the known ones lead to, with what its moves cost, written down anew."""
    sizes = [ranks.size for ranks in mesh]
    choices = [
        {REPLICATE, *(one[axis] for one in known), *(shard(d) for d in (0, 1) if tensor.shape[d] % size == 0)}
        for axis, size in enumerate(sizes)
    ]

    def held(one: Layout) -> float:
        dims = [
            ceil(length / prod(n for p, n in zip(one, sizes, strict=True) if p.dim == d))
            for d, length in enumerate(tensor.shape)
        ]
        return prod(dims) * tensor.element_bytes

    ways: nx.DiGraph[Layout] = nx.DiGraph()
    ways.add_nodes_from(known)
    waiting, seen = list(known), set(known)
    while waiting:
        source = waiting.pop()
        for move in moves(source, tensor.shape, sizes, [sorted(c) for c in choices]):
            ends = {source[move.axis].kind: held(source), move.target[move.axis].kind: held(move.target)}
            size = max(held(source), held(move.target)) if len(ends) == 1 else ends.get("S", held(source))
            if "S" in ends and len(ends) == 2:
                size *= sizes[move.axis]
            both = (price(name, mesh[move.axis], size) for name in (move.forward, move.backward))
            ways.add_edge(source, move.target, cost=sum(w * s for w, s in zip(weights, both, strict=True)))
            if move.target not in seen:
                seen.add(move.target)
                waiting.append(move.target)
    return ways


@settings(max_examples=60)
@given(questions())
def test_no_other_way_is_cheaper(
    question: tuple[tuple[int, ...], Shape, list[Layout], list[Layout], tuple[float, float]],
) -> None:
    sizes, shape, sources, targets, weights = question
    mesh, tensor = groups(*sizes), Tensor(shape, 2)
    table = Redistributor(mesh, *weights).table(tensor, sources, targets)
    places = {one: absolute(one, shape, sizes) for one in (*sources, *targets)}
    ways = all_ways(mesh, tensor, [one for one in places.values() if one is not None], weights)
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            begin, end = places[source], places[target]
            if begin is None or end is None:
                assert table.forward_s[i, j] == (0 if source == target else inf)
                continue
            expected = nx.dijkstra_path_length(ways, begin, end, weight="cost")
            found = weights[0] * table.forward_s[i, j] + weights[1] * table.backward_s[i, j]
            assert found == table.cost_s[i, j] == pytest.approx(expected, rel=1e-9, abs=1e-11)
            steps = table.path(i, j)
            assert [step.move.source for step in steps] + [end] == [begin] + [step.move.target for step in steps]
            assert sum(step.forward_s for step in steps) == pytest.approx(table.forward_s[i, j])
            assert sum(step.backward_s for step in steps) == pytest.approx(table.backward_s[i, j])


def test_prices_are_a_distance_but_not_the_same_both_ways() -> None:
    ends = [(a, b) for a in PLACEMENTS[:6] for b in PLACEMENTS[:6]]
    table = Redistributor(groups(8, 8)).table(Tensor((64, 4096), 2), ends, ends)
    cost = table.cost_s
    assert np.isfinite(cost).all()
    assert not cost.diagonal().any()
    assert (cost[:, None, :] <= cost[:, :, None] + cost[None, :, :] + 1e-10).all()
    assert not np.allclose(cost, cost.T)
    assert not np.allclose(table.forward_s, table.backward_s)


def test_a_gradient_is_moved_as_a_value_the_other_way_round() -> None:
    """The price backward from one layout to another is the price forward between their duals."""
    dual = {"B": Placement("P"), "P": Placement("B")}
    ends = [(a, b) for a in PLACEMENTS[:5] for b in PLACEMENTS[:5]]
    duals = [tuple(dual.get(placement.kind, placement) for placement in end) for end in ends]
    way, tensor = Redistributor(groups(8, 8)), Tensor((4096, 4096), 2)
    there, back = way.table(tensor, ends, ends), way.table(tensor, duals, duals)
    assert np.allclose(there.cost_s, back.cost_s.T, rtol=0, atol=1e-10)
