"""The plan file: JSON at the border, the frozen `planner.plan.Plan` inside.

The same plan always gives the same bytes: keys stand in the order of the schema, mappings are sorted, floats are
written so that reading them gives back the same number. Nothing is written that its own rules would not read.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from costmodels.breakdown import Breakdown, Term
from planner.errors import OutputExistsError, PlanFileError
from planner.graph import InputTensor
from planner.job import Constraints, Job, Pin
from planner.plan import (
    AXES,
    SCHEMA_VERSION,
    BlockLayout,
    Candidate,
    ExpertPlacement,
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
from planner.plan_rules import SCHEDULES, contradictions
from planner.plan_schema import BlockPart, PlanFile, PredictedPart


def to_json(plan: Plan) -> str:
    """Text of the plan file, ending in a newline; a function of the plan alone, byte by byte."""
    text = _dump(_to_object(plan))
    assert _parse(text) == plan, "a plan file must say all that its plan says"
    return text


_SEARCHED = (
    "pp", "dp_replicate", "dp_shard", "tp", "sequence_parallel", "zero_stage", "microbatch_size", "num_microbatches",
    "recompute",
)  # fmt: skip
"""Fields of a candidate that the search chooses; the others are the same in all of its plans."""


def result_to_json(result: PlanResult) -> str:
    """The plan file's object with two more keys: ``alternatives`` (compact, best first) and wall ``seconds``."""
    alternatives = [
        {
            **{name: getattr(alternative.candidate, name) for name in _SEARCHED},
            "step_s": alternative.predicted.step_s,
            "tokens_per_s": alternative.predicted.tokens_per_s,
            "mfu": alternative.predicted.mfu,
            "peak_memory_bytes": alternative.predicted.peak_bytes,
        }
        for alternative in result.alternatives
    ]
    return _dump({**_to_object(result.plan), "alternatives": alternatives, "seconds": dict(result.seconds)})


def from_json(text: str, source: str) -> Plan:
    """The plan written in ``text``; ``source`` names it in errors.

    Raises PlanFileError with file, field, value and rule for the first few breaches: JSON that cannot be read, another
    schema version, an unknown, missing or mistyped field, or figures that contradict each other.
    """
    try:
        return _parse(text)
    except _InvalidFileError as error:
        raise PlanFileError("\n".join(f"{source}: {breach}" for breach in error.args)) from None


def read(path: Path) -> Plan:
    """The plan in a file. Raises PlanFileError: no such file, not text, or what `from_json` finds."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanFileError(f"{path}: cannot be read: {error}") from None
    return from_json(text, str(path))


def check_output(path: Path, *, force: bool) -> None:
    """Raise OutputExistsError or PlanFileError if `write` could not write to ``path``; asked before the long work."""
    if path.is_dir():
        raise PlanFileError(f"cannot write {path}: it is a directory; name a file in it")
    if not path.parent.is_dir():
        raise PlanFileError(f"cannot write {path}: there is no directory {path.parent}; create it first")
    if not force and os.path.lexists(path):
        raise OutputExistsError(_EXISTS.format(path))


def write(plan: Plan, path: Path, *, force: bool = False) -> None:
    """Write the plan file whole or not at all.

    The text goes to a new file beside ``path`` that then takes its name in one step, so that no reader ever sees a
    part. Raises OutputExistsError for an existing file without ``force``, PlanFileError where nothing can be written.
    """
    check_output(path, force=force)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as file:
            file.write(to_json(plan).encode())
            file.flush()
            os.fsync(file.fileno())
        if force:
            draft.replace(path)
        else:
            # Unlike a rename, a link never takes the place of a file that appeared since the check.
            path.hardlink_to(draft)
    except FileExistsError:
        raise OutputExistsError(_EXISTS.format(path)) from None
    except OSError as error:
        raise PlanFileError(f"cannot write {path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the plan file. Sums and products across fields are checked by `from_json` only."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **PlanFile.model_json_schema()}


_EXISTS = "{} exists already; nothing was written. Give another name or --force"
_MOST_BREACHES = 5


class _InvalidFileError(ValueError):
    """Each argument is one breach: ``field = value: rule``."""


def _dump(content: dict[str, object]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _to_object(plan: Plan) -> dict[str, object]:
    candidate = plan.candidate
    return {
        "schema_version": SCHEMA_VERSION,
        "inputs": {
            **vars(plan.inputs),
            "job": vars(plan.inputs.job),
            "constraints": asdict(plan.inputs.constraints),
            "batch": [asdict(tensor) for tensor in plan.inputs.batch],
        },
        "mesh": {
            "axes": [{"name": axis, "size": getattr(candidate, axis)} for axis in AXES],
            "sharding": {name: getattr(candidate, name) for name in _SHARDING},
        },
        "layouts": [
            {
                "pattern": layout.pattern,
                "placements": {axis: layout.placements[axis] for axis in (*AXES, "ep") if axis in layout.placements},
                "num_chunks": layout.num_chunks,
            }
            for layout in plan.layouts
        ],
        "experts": [asdict(placed) for placed in plan.experts],
        "operations": [asdict(block) for block in plan.operations],
        "pipeline": {
            "schedule": plan.schedule,
            "num_chunks": candidate.num_chunks,
            "actions": plan.actions,
            "stages": [{"modules": stage.modules} for stage in plan.stages],
            "num_microbatches": candidate.num_microbatches,
            "microbatch_size": candidate.microbatch_size,
        },
        "recompute": candidate.recompute,
        "recomputed_blocks": candidate.recomputed_blocks,
        "predicted": _predicted(plan),
        "search": _search(plan),
        "warnings": plan.warnings,
    }


_SHARDING = ("sequence_parallel", "zero_stage", "context", "ulysses", "ep")


def _predicted(plan: Plan) -> dict[str, object] | None:
    predicted = plan.predicted
    if predicted is None:
        return None
    return {
        "step_s": {
            "value": predicted.step_s,
            "low": predicted.breakdown.low_s,
            "high": predicted.breakdown.high_s,
        },
        "tokens_per_s": predicted.tokens_per_s,
        "mfu": predicted.mfu,
        "memory_bytes": [
            {"total": stage.total_bytes, "parts": dict(sorted(stage.parts.items()))} for stage in predicted.memory
        ],
        "breakdown": [
            {"term": t.name, "seconds": t.seconds, "low_s": t.low_s, "high_s": t.high_s, "evidence": t.evidence}
            for t in predicted.breakdown.terms
        ],
        "assumptions": predicted.assumptions,
    }


def _search(plan: Plan) -> dict[str, object] | None:
    search, predicted = plan.search, plan.predicted
    if search is None:
        return None
    return {
        "candidates": search.candidates,
        "priced": search.priced,
        "rejected": dict(sorted(search.rejected.items())),
        "bound_s": search.bound_s,
        "gap": search.gap(predicted.step_s) if predicted else None,
    }


def _parse(text: str) -> Plan:
    """The plan that ``text`` says; _InvalidFileError if it breaks a rule."""
    try:
        content = json.loads(text, object_pairs_hook=_object_without_duplicates)
    except json.JSONDecodeError as error:
        raise _InvalidFileError(
            f"line {error.lineno}, column {error.colno}: {error.msg}: a plan file is one JSON object"
        ) from None
    except RecursionError:
        raise _InvalidFileError("nested too deeply for a plan file") from None
    if not isinstance(content, dict):
        raise _InvalidFileError(f"found {_shown(content)}: a plan file is one JSON object")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise _InvalidFileError(
            f"schema_version = {_shown(version)}: this Meshwright reads version {SCHEMA_VERSION}; "
            "plan again to get such a file"
        )
    try:
        file = PlanFile.model_validate_json(text)
    except ValidationError as error:
        raise _InvalidFileError(*(_breach(detail) for detail in error.errors()[:_MOST_BREACHES])) from None
    if breaches := list(contradictions(file)):
        raise _InvalidFileError(*breaches[:_MOST_BREACHES])
    return _to_plan(file)


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise _InvalidFileError(f"key {_shown(twice)} stands twice in one object")
    return content


def _breach(detail: ErrorDetails) -> str:
    """``mesh.axes[2].size = 0: Input should be greater than or equal to 1``."""
    field = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in detail["loc"]).removeprefix(".")
    if detail["type"] == "missing":
        return f"{field}: required key is missing"
    rule = "unknown key" if detail["type"] == "extra_forbidden" else detail["msg"]
    return f"{field} = {_shown(detail['input'])}: {rule}"


def _shown(value: object) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _expanded(modules: Iterable[str]) -> tuple[str, ...]:
    """``layers.0-3`` as the four modules that it stands for."""
    found: list[str] = []
    for name in modules:
        if run := _RUN.fullmatch(name):
            found += (f"{run[1]}{number}{run[4]}" for number in range(int(run[2]), int(run[3]) + 1))
        else:
            found.append(name)
    return tuple(found)


_RUN = re.compile(r"((?:.*\.)?)(\d+)-(\d+)((?:\..*)?)")


def _sizes(file: PlanFile) -> dict[str, Any]:
    return {axis.name: axis.size for axis in file.mesh.axes}


def _to_constraints(constraints: dict[str, Any]) -> Constraints:
    pins = constraints.pop("pins")
    return Constraints(**constraints, pins=tuple(Pin(**pin) for pin in pins))


def _to_block(block: BlockPart) -> BlockLayout:
    return BlockLayout(
        modules=block.modules,
        calls=block.calls,
        operations=tuple(
            OperationLayout(
                **{
                    **op.model_dump(),
                    "redistributions": tuple(Redistribution(**r.model_dump()) for r in op.redistributions),
                }
            )
            for op in block.operations
        ),
    )


def _to_plan(file: PlanFile) -> Plan:
    inputs = file.inputs.model_dump()
    job, constraints = inputs.pop("job"), inputs.pop("constraints")
    batch = tuple(InputTensor(**tensor) for tensor in inputs.pop("batch"))
    return Plan(
        inputs=PlanInputs(**inputs, job=Job(**job), constraints=_to_constraints(constraints), batch=batch),
        candidate=Candidate(
            **_sizes(file),
            **file.mesh.sharding.model_dump(),
            microbatch_size=file.pipeline.microbatch_size,
            num_microbatches=file.pipeline.num_microbatches,
            recompute=file.recompute,
            recomputed_blocks=file.recomputed_blocks,
            num_chunks=file.pipeline.num_chunks,
            schedule=SCHEDULES[file.pipeline.schedule],
        ),
        layouts=tuple(ParamLayout(**layout.model_dump()) for layout in file.layouts),
        experts=tuple(ExpertPlacement(**placed.model_dump()) for placed in file.experts),
        operations=tuple(_to_block(block) for block in file.operations),
        stages=tuple(Stage(modules=_expanded(stage.modules)) for stage in file.pipeline.stages),
        actions=file.pipeline.actions,
        predicted=_to_prediction(file.predicted) if file.predicted else None,
        search=SearchReport(**file.search.model_dump(exclude={"gap"})) if file.search else None,
        warnings=file.warnings,
    )


def _to_prediction(predicted: PredictedPart) -> Prediction:
    return Prediction(
        breakdown=Breakdown(
            tuple(
                Term(name=t.term, seconds=t.seconds, low_s=t.low_s, high_s=t.high_s, evidence=t.evidence)
                for t in predicted.breakdown
            )
        ),
        tokens_per_s=predicted.tokens_per_s,
        mfu=predicted.mfu,
        memory=tuple(StageMemory(parts=dict(stage.parts)) for stage in predicted.memory_bytes),
        assumptions=predicted.assumptions,
    )
