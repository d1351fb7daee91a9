"""Pipeline schedules: who runs what in which order, what that takes, and what it holds.

`make` gives a schedule by name, `simulate` the times of all its actions, `price_step` only the step's seconds and bytes
and those fast. All are pure functions of frozen values.
"""

from costmodels.schedules.actions import Action, Entry, Pair
from costmodels.schedules.catalogue import NAMES, make
from costmodels.schedules.cost import Cost, StageCost
from costmodels.schedules.errors import DeadlockError, ScheduleError
from costmodels.schedules.schedule import Schedule
from costmodels.schedules.steady import Step, price_step
from costmodels.schedules.timeline import Peak, Span, Timeline, simulate

__all__ = [
    "NAMES",
    "Action",
    "Cost",
    "DeadlockError",
    "Entry",
    "Pair",
    "Peak",
    "Schedule",
    "ScheduleError",
    "Span",
    "StageCost",
    "Step",
    "Timeline",
    "make",
    "price_step",
    "simulate",
]
