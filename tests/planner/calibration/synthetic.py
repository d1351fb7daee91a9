"""Measured steps whose constants are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.calibration.fit import Observation

TRUE = {"gemm": 1.3, "gemm/a": 0.9, "attention": 0.8, "dp": 1.5}
WIDE = 10.0
"""A prior that says next to nothing."""


def rows(count: int = 60, *, noise: float = 0.0, seed: int = 1) -> list[Observation]:
    """Steps of random shares of three classes on devices ``a`` and ``b``, measured as `TRUE` has it."""
    random = np.random.default_rng(seed)
    made = []
    for i in range(count):
        seconds = dict(zip(("gemm", "attention", "dp"), random.dirichlet((4, 2, 1)).tolist(), strict=True))
        constants = {"gemm": ("gemm", *(("gemm/a",) if i % 2 else ())), "attention": ("attention",), "dp": ("dp",)}
        measured_s = sum(s * np.prod([TRUE[name] for name in constants[kind]]) for kind, s in seconds.items())
        made.append(
            Observation(
                id=str(i), source=f"source {i % 5}", group=str(i), seconds=seconds, constants=constants,
                measured_s=float(measured_s * np.exp(noise * random.standard_normal())),
            )
        )  # fmt: skip
    return made


def slower(row: Observation, times: float) -> Observation:
    """The same run, had it taken ``times`` as long."""
    return replace(row, measured_s=row.measured_s * times)
