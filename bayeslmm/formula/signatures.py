"""The functions that a formula may call and what each of them takes: names only, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MOST_BASIS = 100
"""Degree, degrees of freedom or number of knots of one polynomial or spline."""

MOST_HASHED = 1000
"""Levels that hashed() makes."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Arguments of a function.

    Attributes
    ----------
    values : int
        How many arguments, the first ones and by position, are computed from columns.
    options : tuple of str
        The arguments after those, by position or by name; they are written out.
    named : tuple of str
        Further options, by name only.
    """

    values: int
    options: tuple[str, ...] = ()
    named: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """All options."""
        return self.options + self.named


def _of(values: int, names: str) -> dict[str, Signature]:
    return dict.fromkeys(names.split(), Signature(values))


_CUBIC = Signature(1, ("df", "knots", "lower_bound", "upper_bound", "constraints", "extrapolation"))
_BS = (
    *("df", "knots", "degree", "include_intercept", "lower_bound", "upper_bound"),
    "extrapolation",
)
_FACTOR = Signature(1, ("contrasts",), ("levels", "spans_intercept"))

FUNCTIONS: Mapping[str, Signature] = MappingProxyType(
    {
        **_of(1, "abs acos asin atan ceil cos cosh exp exp10 exp2 expm1 floor log log10 log1p"),
        **_of(1, "log2 sign sin sinh sqrt tan tanh I center"),
        **_of(2, "pmax pmin"),
        "C": _FACTOR,
        "factor": _FACTOR,
        "Q": Signature(0, ("name",)),
        "bs": Signature(1, _BS),
        "cc": _CUBIC,
        "cr": _CUBIC,
        "cs": _CUBIC,
        "hashed": Signature(1, ("levels", "contrasts"), ("spans_intercept",)),
        "lag": Signature(1, ("k",)),
        "ns": Signature(1, ("df", "knots", "intercept", "boundary_knots")),
        "poly": Signature(1, ("degree", "raw")),
        "round": Signature(1, ("decimals",)),
        "scale": Signature(1, ("center", "scale", "ddof")),
        "standardize": Signature(1, ("center", "rescale", "ddof")),
    }
)
"""By bare name."""

NUMPY: Mapping[str, Signature] = MappingProxyType(
    {
        **_of(1, "abs absolute arccos arccosh arcsin arcsinh arctan arctanh cbrt ceil cos cosh"),
        **_of(1, "deg2rad degrees exp exp2 expm1 fabs floor isfinite isnan log log10 log1p log2"),
        **_of(1, "logical_not negative rad2deg radians reciprocal rint sign sin sinc sinh sqrt"),
        **_of(1, "square tan tanh trunc"),
        **_of(2, "add arctan2 divide floor_divide fmax fmin fmod hypot logaddexp logical_and"),
        **_of(2, "logical_or logical_xor maximum minimum mod multiply power remainder subtract"),
        **_of(3, "clip where"),
        "round": Signature(1, ("decimals",)),
    }
)
"""After ``np.``: functions of each row by itself, so that new data change no other row."""

STATEFUL = frozenset({"bs", "cc", "center", "cr", "cs", "ns", "poly", "scale", "standardize"})
"""Functions that remember the rows they were fitted to."""

TRANSFORMS = STATEFUL | {"C", "factor", "hashed", "lag"}
"""Functions of whole columns or of factors; every other one is of each row by itself."""

CONSTANTS = ("FALSE", "TRUE", "np.e", "np.pi", "pi")

CONTRASTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Diff": ("backward",),
        "Helmert": ("reverse", "scale"),
        "Poly": ("scores",),
        "Sum": (),
        "Treatment": ("reference",),
        "contr.SAS": ("base",),
        "contr.custom": ("contrasts", "names"),
        "contr.diff": ("backward",),
        "contr.helmert": ("reverse", "scale"),
        "contr.poly": ("scores",),
        "contr.sum": (),
        "contr.treatment": ("base",),
    }
)
"""Second argument of ``C``, with or without options in parentheses."""

SIZES: Mapping[str, int] = MappingProxyType({"degree": MOST_BASIS, "df": MOST_BASIS})
"""Options that say how many columns a function makes, and the most."""

ROW_BY_ROW = {
    "max": "pmax",
    "mean": "center",
    "median": "center",
    "min": "pmin",
    "std": "scale",
}
"""Functions of whole columns that people reach for, and what does the like and remembers it."""
