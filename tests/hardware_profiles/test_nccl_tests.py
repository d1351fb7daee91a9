"""The format is that of nccl-tests' src/util.cu: the numbers below are made up, the keys are not."""

import json
from pathlib import Path
from typing import Any

import pytest

from hardware_profiles.nccl_tests import NcclTestsError, read_nccl_tests, with_nccl_tests
from tests.hardware_profiles.test_samples import MACHINE, SAMPLE


def result(size: int, time_us: Any = 50.0, **more: Any) -> dict[str, Any]:
    body = {"time": time_us, "alg_bw": 1.0, "bus_bw": 1.75, "nwrong": 0.0}
    return {
        "size": size, "count": size // 4, "type": "float", "redop": "sum", "root": "    -1",
        "out_of_place": body, "in_place": body | {"time": 1.0}, "actual_iterations": 20, "experiment_name": "", **more,
    }  # fmt: skip


def write(path: Path, results: list[dict[str, Any]], **changes: Any) -> Path:
    devices = [
        {"rank": rank, "group": 0, "pid": 1, "hostname": f"host{rank // 4}", "device": rank % 4,
         "device_hex": "0000:1b:00", "device_info": "NVIDIA H100 80GB HBM3"}
        for rank in range(8)
    ]  # fmt: skip
    table = {
        "version": 3, "start_time": "2026-07-09 16:03:21", "args": ["/opt/nccl-tests/all_reduce_perf", "-b", "8"],
        "env": ["HOME=/root"], "nccl_version": 22703,
        "config": {"nthreads": 1, "ngpus": 1, "minimum_bytes": 8, "maximum_bytes": 1024, "devices": devices},
        "results": results, "out_of_bounds": {"count": 0, "okay": "true"}, "end_time": "2026-07-09 16:03:30",
    }  # fmt: skip
    config = changes.pop("config", {})
    table["config"] |= config  # type: ignore[operator]
    path.write_text(json.dumps(table | changes))
    return path


def test_sizes_and_out_of_place_times_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "ar.json", [result(0, 5.0), result(1024), result(2048, 60.5)])
    imported = read_nccl_tests(path)
    assert (imported.num_nodes, imported.devices_per_node) == (2, 4)
    assert [(s.kind, s.num_bytes, s.size, s.stride, s.origin) for s in imported.samples] == [
        ("all_reduce", 1024, 8, 1, "ar.json"),
        ("all_reduce", 2048, 8, 1, "ar.json"),
    ]
    assert imported.samples[1].seconds == (pytest.approx(60.5e-6),)


def test_iterations_are_repeats_without_those_skipped(tmp_path: Path) -> None:
    iterations = {"skipped_iterations": 1, "times_us": [99.0, 10.0, 11.0]}
    path = write(tmp_path / "x.json", [result(1024, out_of_place_per_iter=iterations)])
    assert read_nccl_tests(path).samples[0].seconds == (pytest.approx(1e-5), pytest.approx(1.1e-5))


def test_groups_of_a_split_run_and_processes_with_several_devices(tmp_path: Path) -> None:
    devices = [{"rank": rank, "group": rank % 4, "hostname": f"host{rank // 4}"} for rank in range(8)]
    path = write(tmp_path / "split.json", [result(1024)], config={"devices": devices}, args=["alltoall_perf"])
    sample = read_nccl_tests(path).samples[0]
    assert (sample.kind, sample.size, sample.stride) == ("all_to_all", 2, 4)
    first = [{"rank": 0, "group": 0, "hostname": "a"}]
    path = write(tmp_path / "one.json", [result(1024)], config={"devices": first, "ngpus": 8})
    imported = read_nccl_tests(path)
    assert imported.samples[0].size == 8 and imported.devices_per_node == 8


def test_what_is_not_a_timing_is_left_out_and_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", [result(1024, "nan"), result(2048, out_of_place=None)])
    with pytest.raises(NcclTestsError, match="no out-of-place timings"):
        read_nccl_tests(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"args": ["gather_perf"]}, "gather_perf is not one of all_reduce_perf"),
        ({"args": []}, "not the output of nccl-tests -J"),
        ({"config": {"ngpus": "x"}}, "not the output of nccl-tests -J"),
        ({"config": {"devices": [{"rank": r, "group": 0, "hostname": "a"} for r in (0, 1, 3)]}}, "not equally large"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NcclTestsError, match=message):
        read_nccl_tests(write(tmp_path / "x.json", [result(1024)], **changes))


def test_files_join_the_samples_of_the_machine_that_they_are_part_of(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", [result(1024)])
    machine, samples = with_nccl_tests(MACHINE, [SAMPLE], [path])
    assert machine == MACHINE and [sample.num_bytes for sample in samples] == [1024, 1024]
    alone = MACHINE.model_copy(update={"num_nodes": 1, "devices_per_node": 1})
    assert with_nccl_tests(alone, [], [path])[0] == MACHINE
    with pytest.raises(NcclTestsError, match="ran on 2 x 4 devices, which are no part of the 4 x 2"):
        with_nccl_tests(MACHINE.model_copy(update={"num_nodes": 4, "devices_per_node": 2}), [], [path])
