"""``meshwright run``: train a plan for some steps, with what was expected beside it."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch.distributed as dist

from hardware_profiles.cluster import Cluster
from hardware_profiles.load import load_cluster
from planner.errors import MeshwrightError
from planner.plan import Plan, Prediction
from planner.planning import calibrated
from planner.report.trace import predicted_trace
from planner.run_result import RunResult, Step
from planner.runtime.checkpoint import save
from planner.runtime.tracing import PREDICTED, check_folder, trace_name, whole
from planner.runtime.train import Settings, Trainer, make_trainer
from planner.runtime.watch import watched
from planner.solvers.plan_price import predict_plan
from planner.solvers.setting import Setting


def prepare(plan: Plan, settings: Settings, *, hardware: str | None, force: bool, say: Callable[[str], None]) -> Run:
    """Everything up to the first step; what goes wrong goes wrong on all ranks.

    Args:
        hardware: profile to predict with; default the plan's.
        force: write over them.
        say: told what the user should know.
    Raises:
        OutputExistsError: a trace or a checkpoint would be written over.
        UsageError, ProfileError, DataFileError, ModelSourceError, TraceError: as their makers say.
    """
    cluster = _cluster(plan, hardware, say)
    if settings.trace is not None:
        names = [PREDICTED, *(trace_name(rank) for rank in range(plan.candidate.num_devices))]
        check_folder(settings.trace, names, force=force)
    if settings.checkpoint is not None:
        check_folder(settings.checkpoint, [".metadata"], force=force)
    trainer = make_trainer(plan, settings)
    job = plan.inputs.job
    setting = None
    if cluster is not None:
        setting = Setting(trainer.graph, cluster, job, calibrated(trainer.graph, cluster))
    predicted = plan.predicted
    if setting is not None and (predicted is None or hardware is not None):
        predicted = predict_plan(setting, plan)
    return Run(trainer, setting, predicted, force=force)


class Run:
    """A prepared run."""

    def __init__(self, trainer: Trainer, setting: Setting | None, predicted: Prediction | None, *, force: bool) -> None:
        self.trainer, self.setting, self.predicted, self.force = trainer, setting, predicted, force

    def steps(self, stepped: Callable[[Step], None]) -> RunResult:
        """Take all steps and save what was asked for. A rank that is lost ends all processes.

        Args:
            stepped: told every step when it is over.
        """
        trainer, settings, made = self.trainer, self.trainer.settings, []
        with watched() as watch:
            for number in range(1, settings.steps + 1):
                watch.step()
                step = trainer.step(number, profiled=settings.trace is not None and number == settings.steps)
                stepped(step)
                made.append(step)
            watch.step()
            if settings.trace is not None and self.setting is not None and dist.get_rank() == 0:
                with whole(settings.trace / PREDICTED) as path:
                    path.write_text(json.dumps(predicted_trace(self.setting, trainer.plan)), encoding="utf-8")
            if settings.checkpoint is not None:
                save(trainer.model, trainer.optimizer, settings.checkpoint, overwrite=self.force)
        return RunResult(plan=trainer.plan, device=trainer.device.type, steps=tuple(made), predicted=self.predicted)

    def close(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()


def _cluster(plan: Plan, hardware: str | None, say: Callable[[str], None]) -> Cluster | None:
    named = plan.inputs.hardware if hardware is None else hardware
    try:
        return load_cluster(named, None if ":" in named else plan.candidate.num_devices)
    except MeshwrightError as error:
        if hardware is not None:
            raise
        say(f"nothing is predicted but what the plan says: {error} Name the profile with --hardware.")
        return None
