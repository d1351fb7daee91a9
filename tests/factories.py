"""Hand-made plans for tests that need no search."""

from __future__ import annotations

from dataclasses import replace

from costmodels.breakdown import Breakdown, Term
from costmodels.units import GIB
from planner.job import Constraints, Job, Pin
from planner.plan import (
    Alternative,
    BlockLayout,
    Candidate,
    OperationLayout,
    ParamLayout,
    Plan,
    PlanInputs,
    PlanResult,
    Prediction,
    Redistribution,
    SearchReport,
    Stage,
    StageMemory,
)

CANDIDATE = Candidate(
    pp=4,
    dp_replicate=1,
    dp_shard=4,
    tp=4,
    sequence_parallel=True,
    zero_stage=3,
    microbatch_size=1,
    num_microbatches=32,
    recompute="selective",
)
JOB = Job(global_batch=128, seq_len=8192)


def breakdown(**seconds: float) -> Breakdown:
    """Terms by name, a double underscore standing for the dot; 10 % to either side of each."""
    return Breakdown(
        tuple(
            Term(name=name.replace("__", "."), seconds=s, low_s=0.9 * s, high_s=1.1 * s, evidence="datasheet")
            for name, s in seconds.items()
        )
    )


def prediction(prices: Breakdown, num_stages: int, *, job: Job = JOB) -> Prediction:
    return Prediction(
        breakdown=prices,
        tokens_per_s=job.global_batch * job.seq_len / prices.step_s,
        mfu=0.4512,
        memory=tuple(
            StageMemory(parts={"parameters": 10 * GIB, "optimizer": 30 * GIB, "activations": (20 - stage) * GIB})
            for stage in range(num_stages)
        ),
        assumptions=("causal attention is counted in full",),
    )


def plan() -> Plan:
    """Llama-3-70B on 64 devices; its figures are invented but agree with each other."""
    prices = breakdown(
        compute__gemm__forward=3.0,
        compute__gemm__backward=6.0,
        compute__attention=1.5,
        tp__collectives=0.5,
        pp__bubble=1.0,
    )
    return Plan(
        inputs=PlanInputs(
            model="llama3-70b",
            model_sha256="a" * 64,
            num_parameters=70_553_706_496,
            hardware="h100-sxm:8x8",
            hardware_sha256="b" * 64,
            hardware_evidence="datasheet",
            device_memory_bytes=80 * GIB,
            num_devices=64,
            job=JOB,
            constraints=Constraints(max_tp=8, pins=(Pin(fqn="layers.*.attention.qkv", layout="tp:S(0/3)"),)),
            torch_version="2.13.0",
        ),
        candidate=CANDIDATE,
        layouts=(
            ParamLayout(pattern="embedding.weight", placements={"dp_shard": "S(0)", "tp": "S(0)"}),
            ParamLayout(
                pattern="layers.*.attention.qkv.weight", placements={"dp_shard": "S(0)", "tp": "S(0)"}, num_chunks=3
            ),
        ),
        operations=(
            BlockLayout(modules=("embedding",), calls=1, operations=()),
            BlockLayout(
                modules=("layers.*",),
                calls=8,
                operations=(
                    OperationLayout(
                        module="attention.qkv",
                        operation="mm",
                        inputs=("B", "S(1/3)"),
                        outputs=("S(1/3)",),
                        implementation="local",
                        forward_s=0.004,
                        backward_s=0.008,
                        redistributions=(
                            Redistribution(
                                source="S(1)",
                                target="B",
                                forward="all_gather",
                                backward="reduce_scatter",
                                num_bytes=1 << 27,
                                forward_s=0.001,
                                backward_s=0.002,
                            ),
                        ),
                    ),
                    OperationLayout(
                        module="",
                        operation="nll_loss_forward",
                        inputs=("S(1)", "R"),
                        outputs=("R",),
                        implementation="loss_parallel",
                        forward_s=0.0005,
                        backward_s=0.0,
                        redistributions=(),
                    ),
                ),
            ),
        ),
        stages=tuple(Stage(modules=(f"layers.{2 * stage}", f"layers.{2 * stage + 1}")) for stage in range(4)),
        predicted=prediction(prices, 4),
        search=SearchReport(candidates=1200, priced=200, rejected={"memory": 700, "bound": 300}, bound_s=prices.step_s),
        warnings=("lm_head is tied to the embedding",),
    )


def result() -> PlanResult:
    """`plan` with two runners-up."""
    best = plan()
    no_shard = replace(CANDIDATE, dp_replicate=4, dp_shard=1, zero_stage=0, sequence_parallel=False)
    more_tp = replace(CANDIDATE, dp_replicate=2, dp_shard=1, tp=8, zero_stage=0, recompute="none")
    slower = breakdown(compute__gemm=9.0, compute__attention=1.5, tp__collectives=1.25, pp__bubble=1.1)
    slowest = breakdown(compute__gemm=9.4, compute__attention=1.5, tp__collectives=0.5, dp__gradients=2.5)
    return PlanResult(
        plan=best,
        alternatives=(
            Alternative(candidate=no_shard, predicted=prediction(slower, 4)),
            Alternative(candidate=more_tp, predicted=prediction(slowest, 4)),
        ),
        seconds={"capture": 1.5, "search": 0.25, "total": 1.75},
    )
