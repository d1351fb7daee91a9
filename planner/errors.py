"""The exception tree. Everything a user can cause is a `MeshwrightError`; anything else that escapes is our bug.

MeshwrightError            exit code
├── UnknownNameError        4   model, hardware, precision, ... (known names and the nearest)
├── ProfileError            4   a hardware profile or cluster string breaks a rule
├── LaunchError             4   measuring: a launcher's variables that say nothing, or too little
├── SamplesError            4   measuring: samples of another machine, or not samples
├── NcclTestsError          4   measuring: a file that nccl-tests did not write
├── FitError                4   measuring: too little measured for a profile
├── PlanFileError           4   a plan file breaks its schema
├── ModelSourceError        4   a model file, factory or config that gives no model
├── TraceError              4   a model that cannot be traced: FQN, source line, what to do
├── MissingPackageError     4   a package of an optional extra is not installed
├── DataFileError           4   a file of tokens to train on that has none, too few, or another model's
├── CheckpointError         4   a checkpoint of another model, or none
├── OutputExistsError       4   a file is there already and --force was not given
├── UsageError              2   settings that contradict each other or break a rule of arithmetic
└── NoPlanError             3   nothing fits: the limits that collide, and changes that do fit
"""

from __future__ import annotations

from hardware_profiles.errors import MeshwrightError as MeshwrightError
from hardware_profiles.errors import ProfileError as ProfileError
from hardware_profiles.errors import UnknownNameError as UnknownNameError


class PlanFileError(MeshwrightError):
    """A plan file that breaks its schema: file, field, value, rule."""


class ModelSourceError(MeshwrightError):
    """A model name that leads to a file, factory or config from which no model can be had."""


class MissingPackageError(MeshwrightError):
    """A package of an optional extra that is not installed."""


class TraceError(MeshwrightError):
    """A model that cannot be traced: the module's FQN, the source line, the cause and what to do."""


class DataFileError(MeshwrightError):
    """A file to train on: not tokens, too few, or not this model's."""


class CheckpointError(MeshwrightError):
    """A checkpoint of another model, or none: the first names that differ."""


class OutputExistsError(MeshwrightError):
    """The output file is there already."""


class UsageError(MeshwrightError):
    """Settings that contradict each other: the rule with its numbers."""

    exit_code = 2


class NoPlanError(MeshwrightError):
    """No candidate is feasible: why, with numbers, and re-solved changes that are."""

    exit_code = 3
