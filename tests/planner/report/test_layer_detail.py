from __future__ import annotations

from dataclasses import replace

from planner.report import layer_detail
from tests import factories


def test_the_block_that_is_called_most_is_shown_operation_by_operation() -> None:
    assert layer_detail.render(factories.plan()).splitlines() == [
        "layers.* (8 calls), one microbatch of 1 over tp 4: forward 5.50 ms, backward 10.0 ms; also embedding: 0 s",
        "S(d) sharded, R whole, B whole with a partial gradient, P partial sum; nothing is hidden behind anything",
        "",
        "module        operation                        inputs   outputs forward backward communicated before",
        f"{'attention.qkv mm':46} B S(1/3) S(1/3)  4.00 ms  8.00 ms S(1)->B all_gather 1.00 ms, reduce_scatter 2.00 ms",
        ".             nll_loss_forward (loss_parallel) S(1) R   R        500 us",
    ]


def test_a_plan_without_operations_has_no_table() -> None:
    assert layer_detail.render(replace(factories.plan(), operations=())) == ""
