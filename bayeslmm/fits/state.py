"""What is pickled and copied of a fit."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def field_values(value: Any) -> dict[str, Any]:
    """Values of the fields of a dataclass, its state without what it has computed from them.

    Cached properties can hold functions, which do not pickle, and are computed again where they are
    needed.
    """
    return {field.name: getattr(value, field.name) for field in fields(value)}
