"""matplotlib, which is an extra: imported when a figure is drawn."""

from __future__ import annotations

from typing import Any

from planner.errors import MissingPackageError


def plotting() -> tuple[Any, Any]:
    """The package matplotlib and its ``Figure``. Raises `MissingPackageError` where it is not installed."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(
            f"plotting needs matplotlib, which cannot be imported ({error}); "
            'install it with: pip install "meshwright[plot]"'
        ) from None
    return mpl, Figure
