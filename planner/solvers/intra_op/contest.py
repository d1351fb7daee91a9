"""Reads problems of the 2025 contest on intra-operator parallelism: JSON, gzipped or plain.

    {"problem": {"nodes": {"intervals": [[lo, hi], ...], "costs": [[...], ...], "usages": [[...], ...]},
                 "edges": {"nodes": [[i, j], ...], "costs": [[...], ...]}, "usage_limit": int}}

An edge's costs are flat, row by row: row is the strategy of its first node, column that of its second. Costs of 10^18
and more forbid. An absent or null limit is no limit.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from planner.errors import UsageError
from planner.solvers.intra_op.problem import Costs, Problem, Usage

FORBIDDEN = float("1e18")


def read_contest(path: Path) -> Problem:
    """The problem of a file.

    Raises:
        UsageError: no such file, not this format, or lists that do not fit together: file, place and numbers.
    """
    raw = _load(path)
    try:
        nodes, edges, limit = raw["problem"]["nodes"], raw["problem"]["edges"], raw["problem"].get("usage_limit")
        intervals, costs, usages = nodes["intervals"], nodes["costs"], nodes["usages"]
        pairs, tables = edges["nodes"], edges["costs"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not a contest problem: {error} is missing or of another kind.") from error
    if not len(intervals) == len(costs) == len(usages):
        raise UsageError(f"{path}: {len(intervals)} intervals, {len(costs)} costs and {len(usages)} usages of nodes.")
    if len(pairs) != len(tables):
        raise UsageError(f"{path}: {len(pairs)} edges, {len(tables)} tables of costs.")
    if limit is not None and not isinstance(limit, (int, float)):
        raise UsageError(f"{path}: usage_limit is {limit!r}, not a number.")
    unary = tuple(_numbers(path, f"costs of node {i}", row) for i, row in enumerate(costs))
    return Problem(
        costs=unary,
        edges=tuple(_pair(path, e, pair, len(unary)) for e, pair in enumerate(pairs)),
        edge_costs=tuple(
            _table(path, e, row, len(unary[pair[0]]), len(unary[pair[1]]))
            for e, (pair, row) in enumerate(zip(pairs, tables, strict=True))
        ),
        usages=tuple(
            _usages(path, i, interval, row, len(unary[i]))
            for i, (interval, row) in enumerate(zip(intervals, usages, strict=True))
        ),
        limit=limit,
    )


def _load(path: Path) -> Any:
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON: {error}.") from error


def _numbers(path: Path, what: str, row: Any) -> Costs:
    try:
        numbers = np.array(row, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {what}: {error}.") from error
    if numbers.ndim != 1 or not len(numbers) or np.isnan(numbers).any():
        raise UsageError(f"{path}: {what}: expected a list of numbers, one at least.")
    return np.where(numbers >= FORBIDDEN, np.inf, numbers)


def _pair(path: Path, edge: int, pair: Any, num_nodes: int) -> tuple[int, int]:
    match pair:
        case [int(i), int(j)] if 0 <= i < num_nodes and 0 <= j < num_nodes:
            return i, j
    raise UsageError(f"{path}: edge {edge}: {pair!r} is not a pair of the {num_nodes} nodes.")


def _table(path: Path, edge: int, row: Any, rows: int, columns: int) -> Costs:
    numbers = _numbers(path, f"costs of edge {edge}", row)
    if len(numbers) != rows * columns:
        raise UsageError(f"{path}: edge {edge}: {len(numbers)} costs for {rows} x {columns} strategies.")
    return numbers.reshape(rows, columns)


def _usages(path: Path, node: int, interval: Any, row: Any, values: int) -> tuple[Usage, ...]:
    amounts = _numbers(path, f"usages of node {node}", row)
    if len(amounts) != values:
        raise UsageError(f"{path}: node {node}: {len(amounts)} usages for {values} strategies.")
    match interval:
        case [int(lo), int(hi)]:
            return (Usage(lo, hi, amounts),) if hi > lo else ()
    raise UsageError(f"{path}: node {node}: interval {interval!r} is not a pair of time points.")
