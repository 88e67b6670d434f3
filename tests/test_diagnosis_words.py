"""Lists, counts and shares in sentences."""

import pytest

from bayeslmm.summaries.text import MOST, counted, coverage, listed, percent


def test_lists():
    assert listed([]) == "none"
    assert listed(["a"]) == "a"
    assert listed(["a", 2]) == "a and 2"
    assert listed(("a", "b", "c")) == "a, b and c"
    assert listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert listed(range(MOST + 2000)).endswith("11 and 2,000 more")
    assert listed(range(MOST)).endswith("10 and 11")


def test_counts():
    assert [counted(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert counted(12345, "level") == "12,345 levels"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"),
        (1e-9, "below 0.1 %"),
        (0.0123, "1.2 %"),
        (0.5, "50 %"),
        (0.987, "98.7 %"),
        (1.0 - 1e-9, "above 99.9 %"),
        (1.0, "100 %"),
        (float("nan"), "unknown"),
    ],
)
def test_shares_are_not_rounded_to_certainty(share, text):
    assert percent(share) == text


def test_coverage_does_not_break():
    assert coverage(0.95) == "95\N{NO-BREAK SPACE}%"
    assert coverage(0.875) == "87.5\N{NO-BREAK SPACE}%"
