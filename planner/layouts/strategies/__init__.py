"""What every forward operation of a block may do over one mesh axis (docs/layouts.md)."""

from planner.layouts.strategies.nodes import block_nodes, differentiable
from planner.layouts.strategies.option import OpNode, Option
from planner.layouts.strategies.support import Coverage, OpCoverage, coverage, replicated_warning, unruled

__all__ = [
    "Coverage",
    "OpCoverage",
    "OpNode",
    "Option",
    "block_nodes",
    "coverage",
    "differentiable",
    "replicated_warning",
    "unruled",
]
