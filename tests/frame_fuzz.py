"""Seeded data frames of every type, with what a model of them must be, by plain Python."""

import datetime as dt
import decimal
import fractions
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

D = decimal.Decimal
BACKENDS = ("pandas", "polars", "arrow", "dict")
NAMES = (
    *("Intercept", "beta", "sigma", "obs_id", "chain", "draw", "coef", "sd", "u_g", "sd_g", "y"),
    *("a.b", "a b", "a:b", "a[b]", "x|y", "class", "lambda", "None", "True", "log", "C", "np"),
    *("pi", "center", "1", "1.5", "(1, 2)", "é", "名", "🐟", "a/b", "per%", "'q'", '"', "weights"),
    *("Intercept:x", "__class__", "index", "T", "g_coef", "units", "offset", "stratum", "<b>"),
)
IN_CODE = {"None", "True", "class", "lambda", "C", '"'}
"""What Python code cannot name, even in backticks."""


@dataclass(frozen=True)
class Column:
    """Values by Python, None where missing, and the same as a column of some type."""

    values: list[Any]
    made: Any
    note: str


@dataclass(frozen=True)
class Case:
    """A frame, a model to try on it, and what it holds.

    `expected` says which outcome is right: "model", "error" or either.
    """

    data: Any
    formula: str
    weights: str | None
    columns: dict[str, Column]  # by role: y, x, f, g, w, o
    names: dict[str, str]
    expected: str
    note: str


# --- contents --------------------------------------------------------------------------


def quarters(rng, n):
    """Numbers that every type of float holds exactly."""
    return [float(v) / 4 for v in rng.permutation(np.arange(-60, 60))[:n]] if n <= 120 else None


def halves(rng, n):
    return [float(v) / 2 for v in rng.integers(1, 8, n)]


def counts(rng, n):
    return [int(v) for v in rng.integers(0, 100, n)]


LEVELS: dict[str, list[Any]] = {
    "text": ["b", "a", "c"],
    "long text": ["x" * 300, "y" * 300, ""],
    "unicode": ["ä", "名 前", "🐟"],
    "punctuation": ["a:b", "a|b", "a b"],
    "codes": [3, 1, 2],
    "negative codes": [-1, 0, 7],
    "beyond 2^53": [2**53, 2**53 + 1, 2**53 + 2],
    "truth": [True, False],
    "numbers as text": ["10", "9", "1.0"],
    "days": [dt.date(2020, 1, 2), dt.date(2019, 5, 1), dt.date(1, 1, 1)],
    "moments": [dt.datetime(2020, 1, 2, 3), dt.datetime(2019, 5, 1), dt.datetime(1800, 1, 1)],
    "zoned": [
        dt.datetime(2020, 1, 2, tzinfo=dt.UTC),
        dt.datetime(2021, 1, 2, tzinfo=dt.UTC),
        dt.datetime(2019, 5, 1, 4, tzinfo=dt.UTC),
    ],
    "durations": [dt.timedelta(1), dt.timedelta(hours=3), dt.timedelta(-1)],
    "times": [dt.time(1), dt.time(2, 3), dt.time(0)],
}


def levels(rng, n, kind):
    """Some of each level, so that no one has all rows."""
    known = LEVELS[kind]
    return [known[i] for i in rng.permutation(np.resize(np.arange(len(known)), n))]


def with_gaps(rng, values):
    """Some values missing, for one column in four."""
    if rng.random() > 0.25:
        return values
    return [
        None if gap else value
        for value, gap in zip(values, rng.random(len(values)) < 0.15, strict=True)
    ]


# --- the types they come in ------------------------------------------------------------


def chosen(rng, options):
    return options[int(rng.integers(len(options)))]


def gaps(values):
    return any(value is None for value in values)


def nan_for_none(values):
    return [np.nan if value is None else value for value in values]


def _categorical(values, rng, ordered=False):
    known = sorted({v for v in values if v is not None}, key=lambda v: (str(type(v)), v))
    return pd.Series(pd.Categorical(values, categories=known, ordered=ordered))


FLOATS: dict[str, list[tuple[str, Callable[[list[Any], Any], Any]]]] = {
    "pandas": [
        *(
            (t, lambda v, r, t=t: pd.Series(np.array(nan_for_none(v), dtype=t)))
            for t in ("f2", "f4", "f8", ">f8", "g")
        ),
        *((t, lambda v, r, t=t: pd.Series(v, dtype=t)) for t in ("Float32", "Float64")),
        *(
            (t, lambda v, r, t=t: pd.Series(v, dtype=t))
            for t in ("float[pyarrow]", "double[pyarrow]", "object")
        ),
        ("sparse", lambda v, r: pd.Series(pd.arrays.SparseArray(np.array(nan_for_none(v))))),
        (
            "decimals",
            lambda v, r: pd.Series([None if x is None else D(x) for x in v], dtype=object),
        ),
        (
            "fractions",
            lambda v, r: pd.Series(
                [None if x is None else fractions.Fraction(x) for x in v], dtype=object
            ),
        ),
        (
            "decimal[pyarrow]",
            lambda v, r: pd.Series(
                pa.array([None if x is None else D(x) for x in v], pa.decimal128(12, 4)),
                dtype=pd.ArrowDtype(pa.decimal128(12, 4)),
            ),
        ),
        (
            "NumPy's in objects",
            lambda v, r: pd.Series([None if x is None else np.float32(x) for x in v], dtype=object),
        ),
        ("NA", lambda v, r: pd.Series([pd.NA if x is None else x for x in v], dtype=object)),
    ],
    "polars": [
        *(
            (str(t), lambda v, r, t=t: pl.Series(v, dtype=t))
            for t in (pl.Float32, pl.Float64, pl.Float16)
        ),
        (
            "decimal",
            lambda v, r: pl.Series(
                [None if x is None else D(x) for x in v], dtype=pl.Decimal(12, 4)
            ),
        ),
    ],
    "arrow": [
        *(
            (str(t), lambda v, r, t=t: pa.array(v, t))
            for t in (pa.float16(), pa.float32(), pa.float64())
        ),
        *(
            (str(t), lambda v, r, t=t: pa.array([None if x is None else D(x) for x in v], t))
            for t in (pa.decimal128(12, 4), pa.decimal256(40, 4), pa.decimal32(7, 2))
        ),
        ("chunks", lambda v, r: pa.chunked_array([v[:5], v[5:]], pa.float64())),
        ("NaN", lambda v, r: pa.array(nan_for_none(v), pa.float64())),
    ],
}
INTEGERS: dict[str, list[tuple[str, Callable[[list[Any], Any], Any]]]] = {
    "pandas": [
        *(
            (t, lambda v, r, t=t: pd.Series(v, dtype=t if not gaps(v) else "Int64"))
            for t in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint64", ">i4")
        ),
        *(
            (t, lambda v, r, t=t: pd.Series(v, dtype=t))
            for t in (
                "Int8",
                "Int64",
                "UInt8",
                "UInt64",
                "int8[pyarrow]",
                "uint64[pyarrow]",
                "object",
            )
        ),
        (
            "decimals",
            lambda v, r: pd.Series([None if x is None else D(x) for x in v], dtype=object),
        ),
        ("sparse", lambda v, r: pd.Series(pd.arrays.SparseArray(np.array(nan_for_none(v))))),
    ],
    "polars": [
        (str(t), lambda v, r, t=t: pl.Series(v, dtype=t))
        for t in (pl.Int8, pl.Int64, pl.UInt8, pl.UInt64, pl.Int128)
    ],
    "arrow": [
        *(
            (str(t), lambda v, r, t=t: pa.array(v, t))
            for t in (pa.int8(), pa.uint8(), pa.int64(), pa.uint64())
        ),
        (
            "decimal",
            lambda v, r: pa.array([None if x is None else D(x) for x in v], pa.decimal128(38)),
        ),
        ("run ends", lambda v, r: _run_ends(v, pa.int64())),
    ],
}


def _run_ends(values, kind):
    ends = pa.array(range(1, len(values) + 1), pa.int32())
    return pa.RunEndEncodedArray.from_arrays(ends, pa.array(values, kind))


def _dictionary(values, rng):
    """In the order of size, with a value that does not occur and one that is there twice."""
    known = sorted({value for value in values if value is not None})
    words = [*known, *known[:1], *known[:1]] if rng.random() < 0.5 else known
    places = [None if v is None else known.index(v) for v in values]
    return pa.DictionaryArray.from_arrays(pa.array(places, pa.int8()), pa.array(words))


OTHERS: dict[str, list[tuple[str, Callable[[list[Any], Any], Any]]]] = {
    "pandas": [
        ("object", lambda v, r: pd.Series(v, dtype=object)),
        ("inferred", lambda v, r: pd.Series(v)),
        ("category", _categorical),
        ("ordered", lambda v, r: _categorical(v, r, ordered=True)),
    ],
    "polars": [("inferred", lambda v, r: pl.Series(v))],
    "arrow": [("inferred", lambda v, r: pa.array(v)), ("dictionary", _dictionary)],
}
TEXTS: dict[str, list[tuple[str, Callable[[list[Any], Any], Any]]]] = {
    "pandas": [
        *OTHERS["pandas"],
        *(
            (t, lambda v, r, t=t: pd.Series(v, dtype=t))
            for t in ("str", "string[python]", "string[pyarrow]")
        ),
        *(
            (str(t), lambda v, r, t=t: pd.Series(pa.array(v, t), dtype=pd.ArrowDtype(t)))
            for t in (pa.string(), pa.large_string())
        ),
        ("Arrow dictionary", lambda v, r: _arrow_dtype(_dictionary(v, r))),
    ],
    "polars": [
        ("String", lambda v, r: pl.Series(v, dtype=pl.String)),
        ("Categorical", lambda v, r: pl.Series(v, dtype=pl.Categorical)),
        ("Enum", lambda v, r: pl.Series(v, dtype=pl.Enum(sorted({x for x in v if x is not None})))),
    ],
    "arrow": [
        *OTHERS["arrow"],
        *(
            (str(t), lambda v, r, t=t: pa.array(v, t))
            for t in (pa.string(), pa.large_string(), pa.string_view())
        ),
        ("run ends", lambda v, r: _run_ends(v, pa.string())),
    ],
}
TRUTHS: dict[str, list[tuple[str, Callable[[list[Any], Any], Any]]]] = {
    "pandas": [
        *OTHERS["pandas"],
        *((t, lambda v, r, t=t: pd.Series(v, dtype=t)) for t in ("boolean", "bool[pyarrow]")),
    ],
    "polars": OTHERS["polars"],
    "arrow": OTHERS["arrow"],
}


def _arrow_dtype(values):
    return pd.Series(values, dtype=pd.ArrowDtype(values.type))


def rendered(values, backend, rng):
    """The values as a column of one of the types that hold them."""
    known = [value for value in values if value is not None]
    first = known[0]
    if isinstance(first, bool):
        table = TRUTHS
    elif isinstance(first, int):
        table = (
            INTEGERS
            if all(0 <= v < 128 for v in known)
            else {
                "pandas": [
                    *((t, lambda v, r, t=t: pd.Series(v, dtype=t)) for t in ("Int64", "object")),
                    ("category", _categorical),
                ],
                "polars": [("Int64", lambda v, r: pl.Series(v, dtype=pl.Int64))],
                "arrow": [
                    ("int64", lambda v, r: pa.array(v, pa.int64())),
                    ("dictionary", _dictionary),
                ],
            }
        )
    elif isinstance(first, float):
        table = FLOATS
    else:
        table = TEXTS if isinstance(first, str) else OTHERS
    if backend == "dict":
        backend = chosen(rng, ("pandas", "polars", "arrow", "list"))
        if backend == "list":
            return Column(values, list(values), "list")
    note, make = chosen(rng, table[backend])
    return Column(values, make(values, rng), f"{backend} {note}")


# --- hostile columns -------------------------------------------------------------------


class Odd:
    """An object without an order; equal to itself only."""


def _objects(values):
    result = pd.Series([None] * len(values), dtype=object)
    for i, value in enumerate(values):
        result.iat[i] = value
    return result


def _cycled(*values):
    return lambda rng, n: _objects([values[i % len(values)] for i in range(n)])


HOSTILE: dict[str, Callable[[Any, int], Any]] = {
    "1 and '1'": _cycled(1, "1", 2),
    "1 and 1.0": _cycled(1, 1.0, 2),
    "1 and True": _cycled(1, True, 2),
    "all kinds of gaps": _cycled(None, np.nan, pd.NaT, pd.NA, D("NaN"), D("sNaN"), 1.5, 2, 3, 4.5),
    "gaps and text": _cycled(None, np.nan, "a", pd.NA, "b", "c", "a", "b"),
    "zeros": _cycled(0.0, -0.0, 1.0),
    "numbers and text": _cycled(1.5, "NA", 2.5, 3),
    "many numbers as text": lambda rng, n: _objects([str(i / 7) for i in range(n)]),
    "infinite": lambda rng, n: pd.Series(np.where(np.arange(n) % 5 == 1, np.inf, np.arange(n))),
    "infinite decimals": _cycled(D("Infinity"), D(1), D(2)),
    "huge": lambda rng, n: pd.Series(np.arange(n) * 1e306),
    "tiny": lambda rng, n: pd.Series(np.arange(n) * 5e-324),
    "beyond a float": _cycled(10**400, 1, 2.5, 3),
    "beyond 2^64": _cycled(2**70, 2**70 + 1, 2**70 + 2),
    "beyond 2^63": lambda rng, n: pd.Series(np.arange(n, dtype="u8") % 3 + np.uint64(2**63)),
    "2^53 apart": lambda rng, n: pd.Series(2**53 + np.arange(n) % 4),
    "long double": lambda rng, n: pd.Series(np.longdouble("1e4000") * np.arange(n)),
    "complex": lambda rng, n: pd.Series(np.arange(n) % 3 + 1j),
    "complex objects": _cycled(1 + 1j, 2, 3.5),
    "complex categories": lambda rng, n: pd.Series(pd.Categorical(np.arange(n) % 3 + 1j)),
    "lists": _cycled([1], [2], [3, 4]),
    "sets": _cycled({1}, {2}),
    "dicts": _cycled({"a": 1}, {}),
    "arrays": _cycled(np.zeros(2), np.ones(1)),
    "series": _cycled(pd.Series([1.0])),
    "tuples": _cycled((1, "a"), (2,), (1, 2)),
    "tuples of lists": _cycled(([1],), ([2],)),
    "frozen sets": _cycled(frozenset([1]), frozenset([2])),
    "bytes": _cycled(b"a", b"\xff", b""),
    "uuids": lambda rng, n: _objects([uuid.UUID(int=i % 3) for i in range(n)]),
    "objects": lambda rng, n: _objects([Odd() for _ in range(n)]),
    "classes": _cycled(int, str, float),
    "surrogates": _cycled("\ud800", "b", "c"),
    "NUL": _cycled("a\0", "a", "b"),
    "controls": _cycled("a\n", "\x1b[31m", "\u202e"),
    "spaces": _cycled("", " ", "  "),
    "huge text": _cycled("x" * 10**5, "y", "z"),
    "zoned and not": _cycled(dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, tzinfo=dt.UTC)),
    "moments": lambda rng, n: pd.Series(pd.date_range("2020", periods=3)[np.arange(n) % 3]),
    "zoned": lambda rng, n: pd.Series(
        pd.date_range("2020", periods=3, tz="Europe/Berlin")[np.arange(n) % 3]
    ),
    "spans": lambda rng, n: pd.Series(pd.to_timedelta(np.arange(n) % 3, unit="h")),
    "periods": lambda rng, n: pd.Series(
        pd.period_range("2020", periods=3, freq="M")[np.arange(n) % 3]
    ),
    "intervals": lambda rng, n: pd.Series(pd.interval_range(0, 3)[np.arange(n) % 3]),
    "Arrow intervals": lambda rng, n: pa.array(
        pd.Series(pd.interval_range(0, 3)[np.arange(n) % 3])
    ),
    "Arrow periods": lambda rng, n: pa.array(
        pd.Series(pd.period_range("2020", periods=3, freq="M")[np.arange(n) % 3])
    ),
    "cut": lambda rng, n: pd.Series(pd.cut(np.arange(n) % 7, 3)),
    "float16 categories of objects": lambda rng, n: _objects(list(np.float16(np.arange(n) % 3))),
    "categories of numbers": lambda rng, n: pd.Series(pd.Categorical(np.arange(n) % 3 / 2)),
    "categories of Arrow": lambda rng, n: pd.Series(
        np.resize(["a", "b", "c"], n), dtype="string[pyarrow]"
    ).astype("category"),
    "categories of int8": lambda rng, n: pd.Series((np.arange(n) % 3).astype("i1")).astype(
        "category"
    ),
    "categories of mixed": lambda rng, n: pd.Series(
        pd.Categorical([1, "1", 2.5] * n, categories=[1, "1", 2.5, "unused"])[:n]
    ),
    "categories, none used": lambda rng, n: pd.Series(pd.Categorical([None] * n, ["a"])),
    "sparse truth": lambda rng, n: pd.Series(pd.arrays.SparseArray(np.arange(n) % 3 == 1)),
    "records": lambda rng, n: np.zeros(n, dtype=[("a", "i4")]),
    "all missing": lambda rng, n: pd.Series([np.nan] * n),
    "all None": lambda rng, n: _objects([None] * n),
    "constant": lambda rng, n: pd.Series([1.5] * n),
    "one level": lambda rng, n: pd.Series(["a"] * n),
    "as many levels as rows": lambda rng, n: pd.Series([f"l{i}" for i in range(n)]),
    "truth with gaps": lambda rng, n: pd.Series(pd.array([True, None, False] * n, "boolean")[:n]),
    "void": lambda rng, n: pa.array([None] * n, pa.null()),
    "Arrow lists": lambda rng, n: pa.array([[i] for i in range(n)]),
    "Arrow structs": lambda rng, n: pa.array([{"a": i} for i in range(n)]),
    "Arrow maps": lambda rng, n: pa.array(
        [[("a", i)] for i in range(n)], pa.map_(pa.string(), pa.int8())
    ),
    "Arrow dictionary of lists": lambda rng, n: pa.DictionaryArray.from_arrays(
        pa.array([i % 2 for i in range(n)]), pa.array([[1], [2]])
    ),
    "Arrow dictionary with a gap": lambda rng, n: pa.DictionaryArray.from_arrays(
        pa.array([i % 3 for i in range(n)]), pa.array(["a", None, "b"])
    ),
    "Arrow union": lambda rng, n: pa.UnionArray.from_sparse(
        pa.array([i % 2 for i in range(n)], pa.int8()), [pa.array(range(n)), pa.array(["a"] * n)]
    ),
    "Arrow uuids": lambda rng, n: pa.array([bytes([i % 3] * 16) for i in range(n)], pa.uuid()),
    "Arrow JSON": lambda rng, n: pa.ExtensionArray.from_storage(
        pa.json_(), pa.array([str(i % 3) for i in range(n)])
    ),
    "Arrow bool8": lambda rng, n: pa.ExtensionArray.from_storage(
        pa.bool8(), pa.array([i % 2 for i in range(n)], pa.int8())
    ),
    "Arrow nanoseconds": lambda rng, n: pa.array([i % 3 for i in range(n)], pa.time64("ns")),
    "Arrow months": lambda rng, n: pa.array(
        [(i % 3, 0, 0) for i in range(n)], pa.month_day_nano_interval()
    ),
    "Arrow far days": lambda rng, n: pa.array([2**30 + i % 3 for i in range(n)], pa.date32()),
    "Arrow far moments": lambda rng, n: pa.array(
        [2**60 + i % 3 for i in range(n)], pa.timestamp("s")
    ),
    "Arrow zone of nowhere": lambda rng, n: pa.array(
        [i % 3 for i in range(n)], pa.timestamp("s", "Mars/Olympus")
    ),
    "Arrow binary": lambda rng, n: pa.array([bytes([i % 3]) for i in range(n)]),
    "polars objects": lambda rng, n: pl.Series([Odd() for _ in range(n)], dtype=pl.Object),
    "polars lists": lambda rng, n: pl.Series([[i] for i in range(n)]),
    "polars arrays": lambda rng, n: pl.Series(
        [[i, i] for i in range(n)], dtype=pl.Array(pl.Int8, 2)
    ),
    "polars structs": lambda rng, n: pl.Series([{"a": i} for i in range(n)]),
    "polars Int128": lambda rng, n: pl.Series([2**100 + i % 3 for i in range(n)], dtype=pl.Int128),
    "polars Null": lambda rng, n: pl.Series([None] * n, dtype=pl.Null),
    "polars time": lambda rng, n: pl.Series([dt.time(i % 3) for i in range(n)]),
    "polars binary": lambda rng, n: pl.Series([bytes([i % 3]) for i in range(n)]),
    "polars unused": lambda rng, n: pl.Series(["b", "a"] * n, dtype=pl.Enum(["z", "b", "a", "y"]))[
        :n
    ],
}
NESTED = frozenset(
    {"complex", "complex objects", "complex categories", "lists", "sets", "dicts", "arrays"}
    | {"records", "1 and True", "surrogates", "Arrow lists", "Arrow structs", "Arrow maps"}
    | {"Arrow dictionary of lists", "polars lists", "polars arrays", "polars structs"}
    | {"all missing", "all None", "void", "polars Null", "categories, none used", "series"}
    | {"infinite", "infinite decimals", "long double", "tuples of lists", "Arrow union"}
)
"""Columns that no model can have, whatever their role."""


# --- frames ----------------------------------------------------------------------------

FORMULAS = (
    "{y} ~ {x} + {f} + (1 | {g})",
    "{y} ~ {x} + ({x} | {g})",
    "{y} ~ {f} + (1 | {g})",
    "{y} ~ 1 + (1 | {g})",
    "{y} ~ {x} * {f} + (1 | {g})",
    "{y} ~ C({f}) + I({x}**2) + (1 | {g})",
    "{y} ~ {x} + offset({o}) + (1 | {g})",
    "{y} ~ {x} + (1 | {g}:{f})",
    "{y} ~ I({x} - {o}) + (1 | {f}) + (1 | {g})",
)


def make_case(rng):
    """One frame with a formula."""
    n = int(chosen(rng, (1, 2, 3, *(int(rng.integers(16, 40)) for _ in range(20)))))
    backend = chosen(rng, BACKENDS)
    columns = (
        {
            "y": rendered(with_gaps(rng, quarters(rng, n)), backend, rng),
            "x": rendered(with_gaps(rng, chosen(rng, (quarters, counts))(rng, n)), backend, rng),
            "f": rendered(
                with_gaps(
                    rng,
                    levels(
                        rng,
                        n,
                        chosen(rng, ["text", "unicode", "truth", "punctuation", "long text"]),
                    ),
                ),
                backend,
                rng,
            ),
            "g": rendered(with_gaps(rng, levels(rng, n, chosen(rng, list(LEVELS)))), backend, rng),
            "w": rendered(halves(rng, n), backend, rng),
            "o": rendered(chosen(rng, (quarters, counts))(rng, n), backend, rng),
        }
        if n > 3
        else {
            role: rendered(values, backend, rng)
            for role, values in (
                ("y", quarters(rng, n)),
                ("x", counts(rng, n)),
                ("f", ["a"] * n),
                ("g", ["a"] * n),
                ("w", halves(rng, n)),
                ("o", counts(rng, n)),
            )
        }
    )
    expected, note = ("model" if n > 3 else "error"), f"n={n} {backend}"
    if rng.random() < 0.5:
        role, kind = chosen(rng, list("yxfgwo")), chosen(rng, list(HOSTILE))
        made = HOSTILE[kind](rng, n)
        columns[role] = Column([], made, kind)
        backend = _home(made, rng)
        expected, note = "error" if kind in NESTED else "either", f"{note} {role}={kind}"
        if backend != "dict":
            columns = {k: c if k == role else _moved(c, backend, rng) for k, c in columns.items()}
    names = dict(zip(columns, columns, strict=True))
    if rng.random() < 0.25:
        taken = rng.permutation(len(NAMES))[: len(columns)]
        names = {role: NAMES[i] for role, i in zip(columns, taken, strict=True)}
    quoted = {role: f"`{name}`" for role, name in names.items()}
    template = chosen(rng, FORMULAS)
    weights = names["w"] if rng.random() < 0.3 else None
    used = {r for r in columns if f"{{{r}}}" in template} | ({"w"} if weights else set())
    if expected == "error" and n > 3 and role not in used:
        expected = "either"
    if expected == "model" and _awkward(template, used, names):
        expected = "either"
    data = framed({names[r]: c for r, c in columns.items()}, backend, rng)
    kept = {r: c for r, c in columns.items() if r in used}
    return Case(data, template.format(**quoted), weights, kept, names, expected, note)


def _awkward(template, used, names):
    """Whether a name is that of a column of X, or one that Python code cannot have."""
    in_code = "I(" in template or "C(" in template
    bad = {"Intercept", "1"} | (IN_CODE if in_code else set())
    return any(names[r] in bad for r in used)


def _home(made, rng):
    """A kind of frame that can hold a column as it is."""
    if isinstance(made, pd.Series | np.ndarray):
        return chosen(rng, ("pandas", "dict"))
    return chosen(rng, ("arrow" if isinstance(made, pa.Array) else "polars", "dict"))


def _moved(column, backend, rng):
    return rendered(column.values, backend, rng)


def framed(columns, backend, rng):
    """Columns as a frame, of pandas with any index."""
    if backend == "arrow":
        return pa.table({name: column.made for name, column in columns.items()})
    if backend == "polars":
        return pl.DataFrame({name: column.made for name, column in columns.items()})
    if backend == "dict":
        return {name: column.made for name, column in columns.items()}
    frame = pd.DataFrame({name: column.made for name, column in columns.items()})
    n = len(frame)
    frame.index = chosen(
        rng,
        (
            frame.index,
            pd.Index([0] * n),
            pd.date_range("2020", periods=n),
            pd.MultiIndex.from_arrays([np.arange(n) % 3, np.arange(n) // 3]),
            pd.Index([f"r{i}" for i in range(n)], name="y"),
        ),
    )
    return frame
