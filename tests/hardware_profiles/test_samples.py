from pathlib import Path

import pytest

from hardware_profiles.samples import Measurement, Sample, SampleFile, SamplesError, read_samples, samples_path
from tests.hardware_profiles.pictures import machine

MACHINE = machine(2)
SAMPLE = Sample(kind="all_reduce", num_bytes=1024, size=4, stride=2, seconds=(1e-3, 2e-3))


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = samples_path(tmp_path / "x.toml")
    assert path.name == "x.samples.jsonl"
    first = SampleFile.open(path, MACHINE)
    first.append(SAMPLE)
    again = SampleFile.open(path, MACHINE.model_copy(update={"date": "2026-11-21", "hosts": ("c", "d")}))
    assert again.samples == [SAMPLE] and again.machine == MACHINE
    assert again.samples[0].measurement == Measurement(kind="all_reduce", num_bytes=1024, size=4, stride=2)
    again.append(SAMPLE)
    assert read_samples(path) == (MACHINE, [SAMPLE, SAMPLE])


def test_a_line_cut_off_by_a_crash_is_dropped_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    SampleFile.open(path, MACHINE).append(SAMPLE)
    with path.open("a") as file:
        file.write('{"kind": "all_red')
    assert read_samples(path)[1] == [SAMPLE]
    SampleFile.open(path, MACHINE).append(SAMPLE)
    assert read_samples(path)[1] == [SAMPLE, SAMPLE]


def test_another_machine_is_refused_with_what_differs_unless_fresh(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    SampleFile.open(path, MACHINE).append(SAMPLE)
    other = MACHINE.model_copy(update={"devices_per_node": 8, "driver": "2.0"})
    with pytest.raises(SamplesError, match=r"devices_per_node = 4 there, 8 here; driver = '1.0' there, '2.0' here"):
        SampleFile.open(path, other)
    assert SampleFile.open(path, other, fresh=True).samples == []
    assert read_samples(path) == (other, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no measurements"),
        ('{"kind": "launch"}\n', "line 1: does not describe a machine"),
        (MACHINE.model_dump_json() + '\n{"kind": "launch", "seconds": []}\n', "line 2: not a sample: seconds"),
        (MACHINE.model_dump_json() + '\n{"kind": "launch", "seconds": [0]}\n', "line 2: not a sample: seconds.0"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.samples.jsonl"
    path.write_text(text)
    with pytest.raises(SamplesError, match=message):
        read_samples(path)


def test_a_measurement_says_what_it_is() -> None:
    alone = Measurement(kind="send", num_bytes=8, size=2, stride=4, ranks=(0, 4))
    assert str(alone) == "send 8 B 2 ranks, stride 4, ranks 0,4 alone"
    assert str(Measurement(kind="gemm", dtype="bfloat16", shape=(1, 2, 3))) == "gemm bfloat16 1x2x3"
