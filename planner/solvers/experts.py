"""Where a block's tokens are routed to experts, and what expert parallelism changes there.

Over ``ep`` devices each holds ``E / ep`` experts. Tokens leave for their experts and come back by an all-to-all, twice
forward and twice backward; with balanced routing a device then has as many rows as before, but of ``ep`` times as many
tokens per expert (Lepikhin et al. 2020, GShard, section 3.2). Experts are not sharded over ``tp`` then (Megatron-Core's
``expert-tensor-parallel-size 1``): each ``tp`` rank dispatches its own part of the tokens.

**Bytes.** Of ``t`` bytes of tokens on a device, each visiting ``k`` of ``E`` experts, an all-to-all sends ``k t``: a
token goes once per expert. Libraries for experts (DeepEP, and HybridEP for NVLink domains of any size) send it once to
every device that holds one of its experts, and over a network once to every node, where it is passed on; a result comes
back the same way, summed underway. ``h`` experts are among a token's with probability ``p(h) = 1 - C(E - h, k) / C(E,
k)`` where all are chosen equally often. Source: DeepEP's README, normal kernels with NVLink and RDMA forwarding.
"""

from __future__ import annotations

from dataclasses import replace

from costmodels import communication
from hardware_profiles.cluster import Group
from planner.graph import Phase
from planner.layouts.experts import Experts, find_experts
from planner.ops import Gemm

__all__ = ["Experts", "crossing_bytes", "dispatch_s", "exchanged", "find_experts", "one_by_one"]


def crossing_bytes(experts: Experts, ranks: Group, token_bytes: float, *, once: bool) -> tuple[list[float], float]:
    """Bytes that a device moves over each level of ``ranks`` in one dispatch or combine, and those that it keeps.

    ``(f_i - 1) k_i / n * k t`` at level ``i``, or ``once``: ``(f_i - 1) p(E k_i / n) t`` for each of ``n / k_(i+1)``
    devices, as tokens from outside are passed on; ``f_i`` is the level's fan, ``k_i`` the number of devices in its
    units and ``k_(i+1)`` in the unit around them (module docstring).

    Args:
        token_bytes: ``t``, bytes of the tokens on one device, each counted once.
    """
    n, inner, crossing = ranks.size, 1, []
    for level in ranks.levels:
        outer = inner * level.fan
        if once:
            reached = experts.reached(max(1, experts.num_experts * inner // n))
            crossing.append((level.fan - 1) * reached * n / outer * token_bytes)
        else:
            crossing.append((level.fan - 1) * inner / n * experts.top_k * token_bytes)
        inner = outer
    own = experts.reached(max(1, experts.num_experts // n)) if once else experts.top_k / n
    return crossing, own * token_bytes


def dispatch_s(experts: Experts, ranks: Group, token_bytes: float, *, once: bool) -> float:
    """Seconds of one dispatch, or of one combine, over ``ranks``."""
    return communication.exchange_s(ranks, *crossing_bytes(experts, ranks, token_bytes, once=once))


def one_by_one(product: Gemm, halves: int, phase: Phase, *, contracts_tokens: bool) -> Gemm:
    """One expert's part of a grouped product, and of its twin's where ``halves`` is 2: the halves of a gated network
    are one weight, twice as wide. Forward that is the result's columns, in the gradient of weights its rows, in that
    of tokens the depth."""
    if phase == "forward":
        return replace(product, groups=1, n=product.n * halves)
    if contracts_tokens:
        return replace(product, groups=1, m=product.m * halves)
    return replace(product, groups=1, k=product.k * halves)


def exchanged(product: Gemm, ep: int, *, contracts_tokens: bool) -> Gemm:
    """A grouped product after dispatch over ``ep`` devices: fewer experts, each with the rows of all devices.

    Args:
        contracts_tokens: whether tokens are the depth of the product (the gradient of weights) rather than its rows.
    """
    groups = max(1, product.groups // ep)
    factor = product.groups // groups
    if contracts_tokens:
        return replace(product, groups=groups, k=product.k * factor)
    return replace(product, groups=groups, m=product.m * factor)
