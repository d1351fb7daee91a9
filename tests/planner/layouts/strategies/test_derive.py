"""Which options follow from the factors of an operation."""

from __future__ import annotations

import pytest
import torch

from tests.planner.layouts.small import graph
from tests.planner.layouts.strategies.calls import Sizes
from tests.planner.layouts.strategies.written import nodes_of, options_of, texts


@pytest.fixture
def s() -> Sizes:
    return Sizes(torch.Generator().manual_seed(0))


def test_a_product_may_be_column_or_row_parallel(s: Sizes) -> None:
    assert set(options_of(("mm.default", s.x(4, 6), s.x(6, 8)))) == {
        "R R -> R", "B B -> B",  # replicated
        "S(0) B -> S(0)",  # rows
        "B S(1) -> S(1)",  # column parallel
        "S(1) S(0) -> P",  # row parallel
        "P B -> P", "B P -> P",  # linear in both
    }  # fmt: skip


def test_a_bias_is_a_partial_sum_where_the_product_is(s: Sizes) -> None:
    found = set(options_of(("addmm.default", s.x(8), s.x(4, 6), s.x(6, 8))))
    assert {"P S(1) S(0) -> P", "S(0) B S(1) -> S(1)", "B S(0) B -> S(0)", "P P B -> P", "P B P -> P"} < found


def test_what_is_broadcast_is_whole_with_a_partial_gradient(s: Sizes) -> None:
    found = set(options_of(("mul.Tensor", s.x(4, 6), s.x(6))))
    assert found == {"R R -> R", "B B -> B", "S(0) B -> S(0)", "S(1) S(0) -> S(1)", "P B -> P", "B P -> P"}
    assert "P P -> P" in options_of(("add.Tensor", s.x(4, 6), s.x(6)))
    assert "P -> P" not in options_of(("add.Scalar", s.x(4, 6), 1.0))


def test_a_square_is_not_linear_and_one_tensor_is_not_sharded_twice(s: Sizes) -> None:
    x = s.x(4, 4)
    assert set(options_of(("mul.Tensor", x, x))) == {"R -> R", "B -> B", "S(0) -> S(0)", "S(1) -> S(1)"}
    assert set(options_of(("mm.default", x, x))) == {"R -> R", "B -> B"}


def test_a_lookup_over_its_rows_is_a_partial_sum_and_indices_have_no_gradient(s: Sizes) -> None:
    found = set(options_of(("embedding.default", s.x(6, 4), s.ids(6, 2, 3))))
    assert found == {"R R -> R", "B R -> B", "S(0) R -> P", "S(1) R -> S(2)", "B S(0) -> S(0)", "B S(1) -> S(1)"}


def test_sums_and_means_over_a_sharded_dim_are_partial_sums_and_maxima_are_not_offered(s: Sizes) -> None:
    assert set(options_of(("sum.dim_IntList", s.x(4, 6), (0,)))) == {
        "R -> R", "B -> B", "S(0) -> P", "S(1) -> S(0)", "P -> P"
    }  # fmt: skip
    assert "S(0) -> P" in options_of(("mean.dim", s.x(4, 6), (0,)))
    assert set(options_of(("amax.default", s.x(4, 6), (0,)))) == {"R -> R", "B -> B", "S(1) -> S(0)"}


def test_truth_values_and_rounded_numbers_are_no_partial_sums(s: Sizes) -> None:
    assert "P -> P" not in options_of(("clone.default", s.coin(4)))
    assert "P -> P" not in options_of(("_to_copy.default", s.x(4), "torch.int64"))
    assert "P -> P" in options_of(("_to_copy.default", s.ids(9, 4), "torch.float32"))


def test_a_row_may_be_normalised_in_parts_by_reducing_its_statistics(s: Sizes) -> None:
    found = set(options_of(("rms_norm.default", s.x(4, 6), s.x(6), 1)))
    assert found == {"R R -> R R", "B B -> B R", "S(0) B -> S(0) S(0)", "S(1) S(0) -> S(1) R by statistics"}


def test_queries_and_keys_of_one_length_are_different_factors(s: Sizes) -> None:
    q = s.x(2, 4, 8, 6)
    found = set(options_of(("attention.default", q, s.x(2, 4, 8, 6), s.x(2, 4, 8, 6), None, True)))
    assert {
        "S(0) S(0) S(0) -> S(0) S(0)", "S(1) S(1) S(1) -> S(1) S(1)",
        "S(2) B B -> S(2) S(2) by context_all_gather", "S(2) S(2) S(2) -> S(2) S(2) by ring", "B B S(3) -> S(3) R",
    } < found  # fmt: skip
    cross = options_of(("attention.default", q, s.x(2, 4, 5, 6), s.x(2, 4, 5, 6), None, False))
    assert not [option for option in cross if option.endswith("ring")]


def test_positions_are_sharded_with_a_halo_only_where_windows_overlap(s: Sizes) -> None:
    image, rest = s.x(2, 3, 8, 8), (False, (0, 0), 1)
    overlapping = options_of(("convolution.default", image, s.x(4, 3, 3, 3), None, (1, 1), (1, 1), (1, 1), *rest))
    patches = options_of(("convolution.default", image, s.x(4, 3, 2, 2), None, (2, 2), (0, 0), (1, 1), *rest))
    cut = options_of(("convolution.default", image, s.x(4, 3, 3, 3), None, (1, 1), (0, 0), (1, 1), *rest))
    assert "S(2) B -> S(2) by halo" in overlapping
    assert "S(2) B -> S(2)" in patches
    assert not [option for option in cut if option.startswith(("S(2)", "S(3)"))]


def test_what_reads_nothing_has_no_inputs_and_counting_is_not_sharded() -> None:
    assert set(options_of(("zeros.default", (4, 6)))) == {"-> R", "-> S(0)", "-> S(1)"}
    assert set(options_of(("new_zeros.default", torch.ones(3), (4,)))) == {"-> R", "-> S(0)"}
    assert set(options_of(("arange.default", 4))) == {"-> R"}


def test_uneven_shards_are_right_where_a_factor_is_all_of_its_dims(s: Sizes) -> None:
    product = options_of(("mm.default", s.x(5, 6), s.x(6, 8)))
    assert product["S(0) B -> S(0)"].uneven and product["S(0) B -> S(0)"].size == 5
    flattened = options_of(("view.default", s.x(4, 6, 2), (24, 2)))
    assert not flattened["S(0) -> S(0)"].uneven and flattened["S(0) -> S(0)"].size == 4
    assert not flattened["S(1) -> S(0/4)"].uneven and flattened["S(1) -> S(0/4)"].size == 6
    assert flattened["S(2) -> S(1)"].uneven


def test_flattened_and_fused_dims_offer_their_parts() -> None:
    """[batch * seq, ...] and q, k, v one after another, as the block's views have them."""
    product = nodes_of(graph("thirds").blocks[1], 2, 8)["addmm"][0]
    found = {o.factor: o for o in product.options if o.factor is not None}
    rows = [o for o in found.values() if o.outputs[0].kind == "S" and o.outputs[0].dim == 0]
    assert [(str(o.inputs[1]), o.size) for o in rows] == [("S(0)", 16), ("S(0/2)", 8)]
    columns = [o for o in found.values() if o.outputs[0].kind == "S" and o.outputs[0].dim == 1]
    assert [(str(o.inputs[2]), o.size) for o in columns] == [("S(1)", 96), ("S(1/3)", 32), ("S(1/12)", 8)]
    assert texts(rows) == {"B S(0) B -> S(0)", "B S(0/2) B -> S(0/2)"}


def test_parts_that_lie_together_everywhere_are_cut_as_one() -> None:
    """Query heads are (key head, query per key head): together they may be divided by more than there are key heads."""
    attention = nodes_of(graph("gqa").blocks[1], 2, 8)["attention"][0]
    sizes = {str(o.inputs[0]): o.size for o in attention.options if o.factor is not None and o.inputs[0].dim == 1}
    assert sizes == {"S(1)": 8, "S(1/4)": 2}
    split = nodes_of(graph("gqa").blocks[1], 2, 8)["expand"][0]
    assert {o.size for o in split.options if str(o.inputs[0]) == "S(1)"} == {4}
