"""Long lists of test cases, of which most runs take a part.

The default run takes some and ``-m slow`` the others, or a part of them. The whole:

    BAYESLMM_TEST_ALL=1 python -m pytest -m slow
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

ALL = bool(os.environ.get("BAYESLMM_TEST_ALL"))

whole = pytest.mark.skipif(not ALL, reason="takes a minute or more: BAYESLMM_TEST_ALL=1 runs it")
"""For slow tests that are left to the whole."""


def slow(*values: Any) -> Any:
    """A case that is marked as slow."""
    return pytest.param(*values, marks=pytest.mark.slow)


def one_in(nth: int, cases: Iterable[Any]) -> list[Any]:
    """All cases, those beside every `nth` one marked as slow."""
    return [case if i % nth == 0 else slow(*_values(case)) for i, case in enumerate(cases)]


def some[T](count: int, cases: Iterable[T]) -> Sequence[T]:
    """The first `count` cases; all of them where all are asked for."""
    listed = list(cases)
    return listed if ALL else listed[:count]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
