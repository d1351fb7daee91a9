"""Context parallelism: what attention communicates when the sequence of a sample is spread over ``cp`` devices.

With ``K`` bytes of keys and values on one device (of its own tokens) and ``a`` seconds of attention on one device:

- ``all_gather``: every device gathers all keys and values before it attends, ``all_gather(cp K)``; backward it gathers
  them again and reduce-scatters their gradients (Llama 3, arXiv 2407.21783, section 3.3.2).
- ``ring``: keys and values travel round in ``cp - 1`` steps of ``K`` bytes, each behind ``a / cp`` of attention;
  backward their gradients travel along, ``2 K`` (Liu et al. 2023, arXiv 2310.01889; zig-zag order balances causal
  masks).
- ``ulysses``: all-to-alls exchange the split of the sequence for one of heads: queries, keys, values and the result,
  and the same backward (Jacobs et al. 2023, arXiv 2309.14509, section 3.2).

``ulysses_ring`` is the last between neighbours and the second between what remains: both are paid.
"""

from __future__ import annotations

from typing import Literal

from costmodels import communication
from hardware_profiles.cluster import Group

ContextKind = Literal["all_gather", "ring", "ulysses"]


def context_s(
    kind: ContextKind, ranks: Group, *, kv_bytes: float, q_bytes: float, attention_s: float, backward: bool
) -> float:
    """Exposed seconds of one attention (module docstring).

    Args:
        kv_bytes: keys and values of one device's tokens, ungrouped heads once.
        q_bytes: queries of one device's tokens; as many as the result has.
        attention_s: seconds of the attention itself on one device.
    """
    cp = ranks.size
    if cp == 1:
        return 0.0
    match kind:
        case "ring":
            step_s = communication.all_gather_s(ranks, cp * kv_bytes) / (cp - 1)
            travelling = 2 if backward else 1
            return (cp - 1) * max(0.0, travelling * step_s - attention_s / cp)
        case "all_gather":
            gather_s = communication.all_gather_s(ranks, cp * kv_bytes)
            return gather_s + (communication.reduce_scatter_s(ranks, cp * kv_bytes) if backward else 0.0)
        case "ulysses":
            return 2 * communication.all_to_all_s(ranks, q_bytes) + 2 * communication.all_to_all_s(ranks, kv_bytes / 2)
