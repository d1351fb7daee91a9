"""Meshwright: find the best layout of a PyTorch training job over a cluster.

Public API; names are imported when first used, so that nothing heavy loads with the package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.errors import MeshwrightError as MeshwrightError
    from planner.errors import NoPlanError as NoPlanError
    from planner.job import Constraints as Constraints
    from planner.job import Job as Job
    from planner.job import Pin as Pin
    from planner.layout_planning import best_layouts as best_layouts
    from planner.layout_result import LayoutResult as LayoutResult
    from planner.plan import Plan as Plan
    from planner.plan import PlanResult as PlanResult
    from planner.plan_file import read as read_plan  # noqa: F401
    from planner.plan_file import write as write_plan  # noqa: F401
    from planner.planning import make_plan as make_plan
    from planner.runtime.parallelize import auto_parallelize as auto_parallelize
    from planner.runtime.parallelize import parallelize as parallelize

_HOMES = {
    "Constraints": ("planner.job", "Constraints"),
    "Job": ("planner.job", "Job"),
    "LayoutResult": ("planner.layout_result", "LayoutResult"),
    "MeshwrightError": ("planner.errors", "MeshwrightError"),
    "NoPlanError": ("planner.errors", "NoPlanError"),
    "Pin": ("planner.job", "Pin"),
    "Plan": ("planner.plan", "Plan"),
    "PlanResult": ("planner.plan", "PlanResult"),
    "auto_parallelize": ("planner.runtime.parallelize", "auto_parallelize"),
    "best_layouts": ("planner.layout_planning", "best_layouts"),
    "make_plan": ("planner.planning", "make_plan"),
    "parallelize": ("planner.runtime.parallelize", "parallelize"),
    "read_plan": ("planner.plan_file", "read"),
    "write_plan": ("planner.plan_file", "write"),
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
