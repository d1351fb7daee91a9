"""Real processes with gloo. They are forked from one that has imported torch, which saves its import in each."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hardware_profiles.errors import MeshwrightError
from hardware_profiles.load import load_cluster, load_profile
from hardware_profiles.measure import measure, profile_name
from hardware_profiles.measuring.launcher import ALONE, LaunchError, first_host, place
from hardware_profiles.measuring.watchdog import Judge, Pulse, Verdict
from hardware_profiles.nccl_tests import NcclTestsError
from hardware_profiles.samples import read_samples
from hardware_profiles.schema import Profile

ROOT = Path(__file__).parents[2]

LAUNCHER = """
import os, signal, sys, time
from pathlib import Path

import torch, torch.distributed, torch._dynamo  # the last is what the first optimizer step imports

from hardware_profiles.measuring import session
from hardware_profiles.measuring.launcher import place
from hardware_profiles.measuring.run import Options, run
from hardware_profiles.measuring.sizes import Sizes
from hardware_profiles.errors import MeshwrightError

SIZES = Sizes(
    gemm=((128, 128, 128), (256, 256, 256)), grouped_gemm=((2, 128, 128, 128),), attention=((1, 2, 256, 32),),
    stream_bytes=(1 << 20,), passes=((1024, 1 << 20), (16384,)), pair_bytes=1024, overlap=((128, 128, 128), 65536),
    budget_s=0.005, slow_s=1.0, total_s=60.0, batch_s=0.002, min_repeats=2, max_repeats=3,
)
world, per_node, output, limit, rank_of_trouble, trouble = sys.argv[1:7]
world, per_node = int(world), int(per_node)

children = []
for rank in range(world):
    pid = os.fork()
    if pid == 0:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank % per_node),
            "LOCAL_WORLD_SIZE": str(per_node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ["TEST_PORT"],
        }
        if rank == int(rank_of_trouble):
            prepare = session.Session._prepare
            def troubled(self, what):
                if what.kind == "all_gather" and what.num_bytes > 65536:
                    if trouble == "hang":
                        time.sleep(1000)
                    if trouble == "kill":
                        os.kill(os.getpid(), signal.SIGKILL)
                    if trouble == "raise":
                        raise RuntimeError("out of memory")
                    if trouble == "interrupt":
                        os.kill(os.getpid(), signal.SIGINT)
                        time.sleep(1000)
                return prepare(self, what)
            session.Session._prepare = troubled
        code = 1
        try:
            options = Options(output=Path(output), name="tiny", sizes=SIZES, time_limit_s=float(limit))
            code = run(place(os.environ), options)
        except MeshwrightError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        finally:
            sys.stderr.flush()
            os._exit(code)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
print(" ".join(map(str, codes)))
"""


def launch(
    tmp_path: Path, world: int, *, per_node: int = 0, limit: float = 20, rank: int = -1, trouble: str = ""
) -> tuple[list[int], str, float]:
    """(exit codes, stderr, seconds) of a run with tiny sizes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "launcher.py"
    script.write_text(LAUNCHER)
    command = [sys.executable, str(script), str(world), str(per_node or world), str(tmp_path / "tiny.toml"), str(limit)]
    began = time.monotonic()
    done = subprocess.run(
        [*command, str(rank), trouble],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TEST_PORT": str(port), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(code) for code in done.stdout.split()], done.stderr, time.monotonic() - began


@pytest.mark.parametrize(("world", "per_node"), [(4, 2), (8, 8)])
def test_gloo_processes_measure_and_write_a_profile(tmp_path: Path, world: int, per_node: int) -> None:
    codes, errors, _ = launch(tmp_path, world, per_node=per_node)
    assert codes == [0] * world, errors
    profile = load_profile(str(tmp_path / "tiny.toml"))
    assert isinstance(profile, Profile)
    assert profile.evidence == "measured"
    assert profile.node.num_devices == per_node and (profile.nic is not None) == (world > per_node)
    assert load_cluster(f"{tmp_path / 'tiny.toml'}:{world // per_node}x{per_node}").num_devices == world
    assert "all_reduce: median" in errors and "wrote" in errors
    kinds = {sample.kind for sample in read_samples(tmp_path / "tiny.samples.jsonl")[1]}
    assert {"gemm", "attention_backward", "norm", "overlap_busy", "reduce_scatter", "send"} <= kinds


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("kill", "rank 1 on {host} died, or its host no longer answers, in all_gather"),
        ("hang", "rank 1 on {host} hangs in all_gather"),
        ("raise", "rank 1 on {host} failed in all_gather"),
        ("interrupt", "stopped by SIGINT in all_gather"),
    ],
)
def test_a_lost_rank_is_named_in_time_and_the_rest_is_kept(tmp_path: Path, trouble: str, message: str) -> None:
    codes, errors, seconds = launch(tmp_path, 3, limit=6, rank=1, trouble=trouble)
    assert message.format(host=socket.gethostname()) in errors, errors
    assert seconds < 40
    expected = 130 if trouble == "interrupt" else 5
    assert [code for i, code in enumerate(codes) if i != 1 or trouble != "kill"].count(expected) >= 2, errors
    # What was measured by then is enough for a profile: all of the device, and all-reduces.
    assert isinstance(load_profile(str(tmp_path / "tiny.toml")), Profile), errors
    before = len(read_samples(tmp_path / "tiny.samples.jsonl")[1])
    assert before >= 9 and "are kept in" in errors


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    launch(tmp_path, 2, limit=6, rank=0, trouble="raise")
    before = read_samples(tmp_path / "tiny.samples.jsonl")[1]
    codes, errors, _ = launch(tmp_path, 2)
    assert codes == [0, 0], errors
    profile = load_profile(str(tmp_path / "tiny.toml"))
    assert isinstance(profile, Profile) and profile.node.num_devices == 2
    after = read_samples(tmp_path / "tiny.samples.jsonl")[1]
    assert after[: len(before)] == before and len(after) > len(before)
    measured = [sample.measurement for sample in after]
    assert len(set(measured)) == len(measured)
    codes, errors, _ = launch(tmp_path, 4)
    assert codes == [4] * 4 and "devices_per_node = 2 there, 4 here" in errors


def test_torchrun_and_the_command_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "hardware_profiles.measure", "-o", str(tmp_path / "x.toml"), "--base", "no-such-profile"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "unknown hardware 'no-such-profile'" in done.stderr


def pulses(*progress: int, **changes: dict[int, object]) -> list[Pulse]:
    return [
        Pulse(
            rank=rank,
            host=f"h{rank}",
            beat=beat,
            measurement=3,
            calls=calls,
            what="all_reduce",
            **changes.get(f"r{rank}", {}),
        )  # type: ignore[arg-type]
        for rank, (beat, calls) in enumerate(zip(progress[::2], progress[1::2], strict=True))
    ]


def test_the_rank_that_is_behind_is_named_and_all_only_where_none_is() -> None:
    judge = Judge(3, time_limit_s=10, interval_s=0.5, now=0)
    assert judge.see(pulses(1, 5, 1, 4, 1, 5), 1) is None
    assert judge.see(pulses(2, 6, 2, 4, 2, 6), 9) is None
    verdict = judge.see(pulses(3, 6, 3, 4, 3, 6), 11.5)
    assert verdict is not None and verdict.missing == (1,) and "rank 1 on h1 hangs in all_reduce" in verdict.text
    judge = Judge(2, time_limit_s=10, interval_s=0.5, now=0)
    judge.see(pulses(1, 5, 1, 5), 0.5)
    verdict = judge.see(pulses(2, 5, 2, 5), 11)
    assert verdict is not None and not verdict.missing and "all ranks wait" in verdict.text


def test_a_rank_that_never_joins_is_named() -> None:
    judge = Judge(2, time_limit_s=10, interval_s=0.5, now=0)
    beating = [Pulse(rank=0, beat=1), Pulse(rank=1)]
    assert judge.see(beating, 5) is None
    verdict = judge.see([Pulse(rank=0, beat=2), Pulse(rank=1)], 11)
    assert verdict is not None and verdict.text == "rank 1 never joined"


def test_a_failure_that_follows_from_a_death_names_the_dead() -> None:
    judge = Judge(3, time_limit_s=10, interval_s=0.5, now=0)
    failed: dict[int, object] = {"state": "failed", "turn": 1, "error": "connection closed"}  # type: ignore[dict-item]
    assert judge.see(pulses(4, 1, 4, 1, 4, 1), 1) is None
    assert judge.see(pulses(5, 1, 4, 1, 5, 1, r2=failed), 2) is None
    verdict = judge.see(pulses(9, 1, 4, 1, 9, 1, r2=failed), 5.5)
    assert verdict is not None and verdict.missing == (1,) and "rank 1 on h1 died" in verdict.text
    judge = Judge(3, time_limit_s=10, interval_s=0.5, now=0)
    judge.see(pulses(5, 1, 5, 1, 5, 1, r2=failed), 2)
    verdict = judge.see(pulses(9, 1, 9, 1, 9, 1, r2=failed), 5.5)
    assert verdict == Verdict(text="rank 2 on h2 failed in all_reduce: connection closed")


def test_launchers() -> None:
    assert place({}) == ALONE
    assert place({"SLURM_PROCID": "0"}) == ALONE
    slurm = {
        "SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
        "SLURM_STEP_NODELIST": "gpu[007-008]", "SLURM_JOB_ID": "41",
    }  # fmt: skip
    found = place(slurm)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (9, 16, 1, 8)
    assert (found.address, found.port) == ("gpu007", 20041)
    with pytest.raises(LaunchError, match="every node must run the same number"):
        place(slurm | {"SLURM_STEP_TASKS_PER_NODE": "8,7"})
    with pytest.raises(LaunchError, match="not LOCAL_RANK"):
        place({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"})
    with pytest.raises(LaunchError, match="RANK = 'x': not a number"):
        place({"RANK": "x", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "a",
               "MASTER_PORT": "1"})  # fmt: skip
    # sbatch's own variable may be another step's.
    assert place(slurm | {"SLURM_NTASKS_PER_NODE": "4"}).local_world_size == 8
    with pytest.raises(LaunchError, match="OMPI_COMM_WORLD_SIZE = 8: start with torchrun or srun"):
        place({"OMPI_COMM_WORLD_SIZE": "8"})
    assert first_host("a1,b2") == "a1" and first_host("n[3,5-6]-ib,x") == "n3-ib"


def test_what_cannot_work_is_said_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MeshwrightError, match="one process measures one device and no links"):
        measure(tmp_path / "x.toml")
    with pytest.raises(MeshwrightError, match=r"a profile is a \.toml file"):
        measure(tmp_path / "x.json")
    with pytest.raises(MeshwrightError, match="name 'My Cluster': lower case letters"):
        measure(tmp_path / "x.toml", name="My Cluster", base="h100-sxm")
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({}))
    with pytest.raises(NcclTestsError):
        measure(tmp_path / "x.toml", nccl_tests=[bad])
    assert profile_name("My Cluster (8x)") == "my-cluster-8x"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
