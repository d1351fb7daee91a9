"""The key-value store in which the ranks meet: the launcher's, or rank 0's."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from hardware_profiles.measuring.launcher import LaunchError, Place

if TYPE_CHECKING:
    from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore
else:
    from torch.distributed import HashStore, PrefixStore, Store, TCPStore

__all__ = ["Store", "meet"]


def meet(place: Place, time_limit_s: float, *, second: bool = False) -> Store:
    """The store of all ranks: the launcher's, or rank 0's; ``second``: a further connection of this rank to it.

    `LaunchError` where it cannot be reached in time.
    """
    if place.world_size == 1:
        return HashStore()
    is_master = place.rank == 0 and not place.agent_store and not second
    try:
        store = TCPStore(
            place.address,
            place.port,
            is_master=is_master,
            wait_for_workers=False,
            timeout=timedelta(seconds=time_limit_s),
        )
    except (RuntimeError, OSError) as error:
        raise LaunchError(f"rank {place.rank}: no store at {place.address}:{place.port}: {error}") from None
    # A launcher that starts the ranks again keeps the store, and with it what the first attempt wrote.
    return PrefixStore(f"meshwright/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
