"""Errors of schedules that a user can mend."""

from __future__ import annotations

from hardware_profiles.errors import MeshwrightError


class ScheduleError(MeshwrightError):
    """A schedule that cannot be made or priced: what was asked with its numbers, the rule, what to do."""


class DeadlockError(ScheduleError):
    """Ranks that wait for each other: which action each is stuck at, and what that needs."""
