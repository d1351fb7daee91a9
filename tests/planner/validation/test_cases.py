from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from planner.validation.case_files import CasesError, load_cases
from tests.planner.validation.rows import ROW, case, published, write


def test_a_row_becomes_a_case_of_codes(tmp_path: Path) -> None:
    row = ROW | {
        "precision": "fp16 mixed",
        "overlap": "AsyncTP",
        "sharding_note": "FSDP FULL_SHARD, mixed_precision PURE, precision bf16",
        "zero_stage": 3,
        "notes": "type:transformer|embedding; out of memory: a label",
        "tflops_per_gpu": 150,
        "mfu": 0.4,
        "tflops_kind": "model FLOPs",
        "derived_fields": ["mfu"],
        "a key of another day": 1,
    }
    (found,) = load_cases([write(tmp_path / "rows.json", row)])
    assert (found.precision, found.overlap, found.sharding, found.zero_stage) == ("fp16", ("tp",), "fsdp", 3)
    assert found.pure_low_precision and found.embedding_stages and found.out_of_memory
    assert (found.printed, found.flops_kind) == (("tflops_per_gpu",), "model")


def test_rows_of_several_files_keep_their_order(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.json", ROW | {"id": name}) for name in ("b", "a")]
    assert [found.id for found in load_cases(files)] == ["b", "a"]
    with pytest.raises(CasesError, match=r"row 'b' stands in .*b\.json already"):
        load_cases([files[0], files[0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": "24"}, "row 'one': layers: Input should be a valid integer, not '24'"),
        ({"step_time_s": True}, "row 'one': step_time_s: Input should be a valid number, not True"),
        ({"trust": "D"}, "row 'one': trust: Input should be 'A', 'A-', 'B' or 'C', not 'D'"),
        ({"derived_fields": ["mfu", 2]}, "row 'one': derived_fields.1: Input should be a valid string, not 2"),
        ({"id": 7}, "row number 1: id: Input should be a valid string, not 7"),
    ],
)
def test_a_fault_names_row_field_and_value(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = write(tmp_path / "rows.json", ROW | change)
    with pytest.raises(CasesError, match=re.escape(f"{file}: {message}")) as error:
        load_cases([file])
    assert error.value.exit_code == 4


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2, "cases": []}', '{"format": 1, "cases": {}}'])
def test_what_is_no_file_of_rows(tmp_path: Path, content: str) -> None:
    file = tmp_path / "rows.json"
    file.write_text(content)
    with pytest.raises(CasesError, match="no file of measured rows"):
        load_cases([file])
    with pytest.raises(CasesError, match="no file of measured rows"):
        load_cases([tmp_path / "absent.json"])
    with pytest.raises(CasesError, match="row number 1: row: Input should be a valid dictionary"):
        load_cases([write(file, 3)])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"conflict": "soft", "trust": "B"}, None),
        ({"trust": "C"}, "trust C: indicative only"),
        ({"conflict": "hard"}, "its numbers do not add up"),
        ({"from_memory": True}, "recalled, not read in the source"),
        ({"set_aside": "duplicate measurement"}, "duplicate measurement"),
        ({"ready_except_recompute": False}, "the source leaves settings open"),
        ({"out_of_memory": True}, "out of memory: counts for feasibility only"),
    ],
)
def test_scoring_rule(change: dict[str, Any], why: str | None) -> None:
    found = case(**change)
    assert (found.why_not_scored, found.scored) == (why, why is None)


def test_published_rows_as_their_description_counts_them() -> None:
    cases = load_cases([published()])
    assert (len(cases), sum(found.scored for found in cases)) == (1065, 775)
    assert sum(found.core for found in cases if found.scored) == 270
    # No setting that is stated is lost for want of a rule.
    rows = json.loads(published().read_text())["cases"]
    for name in ("precision", "schedule", "task", "optimizer", "offload"):
        lost = [row["id"] for row, found in zip(rows, cases, strict=True) if row.get(name) and not getattr(found, name)]
        assert lost == [], name
    assert len({found.framework for found in cases}) < 30


@pytest.mark.parametrize(
    ("batch", "unit", "sequences"),
    [(64, "sequences", 64), (64.0, None, 64), (64, "samples", 64), (131072, "tokens", 64), (64, "images", None)],
)
def test_batches_count_sequences(tmp_path: Path, batch: float, unit: str | None, sequences: int | None) -> None:
    changed = ROW | {"global_batch": batch, "seq_len": 2048}
    changed = changed if unit is None else changed | {"global_batch_unit": unit}
    assert load_cases([write(tmp_path / "rows.json", changed)])[0].global_batch == sequences
