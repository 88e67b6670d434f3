"""Readers of the reference fits, posteriors and data in tests/reference (see the README there)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

FOLDER = Path(__file__).parent / "reference"
_DTYPES = {"factor": str, "integer": "float64", "numeric": "float64"}


def list_fits(*, tag: str | None = None, big: bool = True) -> list[str]:
    """Names of the reference fits, such as "sleepstudy__slope_reml".

    `tag` keeps those with one of the fits' own tags ("crossed", "nested", "random slope", ...);
    ``big=False`` leaves out the fits tagged "big" (more than 30,000 rows).
    """
    names = sorted(path.stem for path in (FOLDER / "fits").glob("*.json"))
    if tag is None and big:
        return names
    tags = {name: load_fit(name)["tags"] for name in names}
    return [n for n in names if tag in (None, *tags[n]) and (big or "big" not in tags[n])]


def load_fit(name: str) -> dict[str, Any]:
    """One reference fit by lme4."""
    return _read_json(FOLDER / "fits" / f"{name}.json")


def list_posteriors() -> list[str]:
    """Names of the reference posteriors, such as "sleepstudy__slope"."""
    return sorted(path.stem for path in (FOLDER / "posteriors").glob("*.json"))


def load_posterior(name: str) -> dict[str, Any]:
    """One reference posterior by Stan, its formula in our spelling."""
    posterior = _read_json(FOLDER / "posteriors" / f"{name}.json")
    return posterior | {"formula": posterior["formula"].replace("^", "**")}


def load_posterior_data(name: str) -> pd.DataFrame:
    """The data of a reference posterior, its factors unordered as they were for Stan."""
    posterior = load_posterior(name)
    frame = load_reference_data(posterior["dataset"])
    if name.endswith("_year"):  # the same data with the calendar year for the age
        frame["age"] += 2000
    for column, levels in posterior["factor_levels"].items():
        frame[column] = pd.Categorical(frame[column].astype(str), categories=levels)
    return frame


def load_reference_data(name: str) -> pd.DataFrame:
    """The data of a reference fit: factors categorical with R's order of levels, labels strings."""
    return _read_data(name).copy()


@cache
def _read_data(name: str) -> pd.DataFrame:
    columns = _read_json(FOLDER / "data" / f"{name}.meta.json")["columns"]
    (path,) = (FOLDER / "data").glob(f"{name}.csv*")
    frame = pd.read_csv(
        path,
        dtype={column["name"]: _DTYPES[column["type"]] for column in columns},
        keep_default_na=False,
        na_values=[""],
        encoding="utf-8",
    )
    for column in columns:
        values = frame[column["name"]]
        if column["type"] == "factor":
            levels = column.get("levels") or list(values.dropna().unique())
            ordered = bool(column.get("ordered"))
            frame[column["name"]] = pd.Categorical(values, categories=levels, ordered=ordered)
        elif column["type"] == "integer" and not column["n_missing"]:
            frame[column["name"]] = values.astype("int64")
    return frame


def load_truth(name: str) -> dict[str, Any]:
    """Seed and true parameter values of a simulated data set, with R's names."""
    return _read_json(FOLDER / "data" / f"{name}.truth.json")


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
