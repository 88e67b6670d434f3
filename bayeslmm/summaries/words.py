"""Lists, counts and shares as they are written in sentences."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

MOST = 12
"""Names that are written out in a sentence."""


def listed(names: Iterable[object], most: int = MOST) -> str:
    """Names in a sentence: "a, b and c"; the first ones and a count where there are many."""
    words = [str(name) for name in names]
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most:,} more"
    if len(words) < 2:
        return words[0] if words else "none"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def counted(count: int, noun: str) -> str:
    """A count with its noun in the right number: "1 row", "1,200 rows"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def percent(share: float) -> str:
    """A share in words that never rounds a possible event to 0 % or 100 %."""
    if not np.isfinite(share):
        return "unknown"
    if 0.0 < share < 0.001:
        return "below 0.1 %"
    if 0.999 < share < 1.0:
        return "above 99.9 %"
    decimals = 1 if 0.0 < min(share, 1.0 - share) < 0.1 else 0
    return f"{100.0 * share:.{decimals}f} %"


def coverage(prob: float) -> str:
    """A nominal probability in per cent: "95 %", without a line break before the sign."""
    return f"{100.0 * prob:g}\N{NO-BREAK SPACE}%"
