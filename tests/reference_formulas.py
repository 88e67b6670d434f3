"""What the formulas and names of the reference fits by R are called in bayeslmm."""

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

# lme4 pastes the labels of an interaction of grouping factors and so merges two cells of these
# data; the fit with the true cells is what the formula means.
STANDS_FOR = {"sim_labels_collide__f1f2_lme4_reml": "sim_labels_collide__cell_reml"}

_INDICATOR = re.compile(r"^(?P<expression>.*)\[(?:T\.)?(?P<level>.*)\]$", re.DOTALL)
_CONTRAST = re.compile(
    r"^C\((?P<variable>\w+), contr\.(?P<kind>\w+)\)\[(?:[SH]\.)?(?P<level>.*)\]$", re.DOTALL
)


def translated(fit: dict[str, Any]) -> str:
    """The formula of a reference fit in bayeslmm's grammar.

    Powers inside ``I()`` are Python's; contrasts other than treatment ones, which R takes from an
    argument or from the class of an ordered factor, are written out.
    """
    formula = re.sub(r"I\((\w+)\^(\d)\)", r"I(\1**\2)", fit["formula"])
    for variable, contrasts in dict(fit["contrasts_used"] or {}).items():
        if contrasts != "contr.treatment":
            formula = re.sub(rf"\b{variable}\b", f"C({variable}, {contrasts})", formula)
    return formula


def r_name(coef: str, frame: pd.DataFrame) -> str:
    """R's name of a coefficient: ``Sex[T.Female]:age`` is ``SexFemale:age``."""
    return ":".join(_r_factor(part, frame) for part in _parts(coef))


def same_group(name: str, factors: Sequence[str]) -> bool:
    """Whether lme4's name of a grouping factor (``cask:batch``) means these variables."""
    return set(name.split(":")) == set(factors)


def r_levels(name: str, frame: pd.DataFrame) -> list[str]:
    """lme4's label of the level of each row for a grouping factor it calls `name`."""
    columns = [frame[variable].astype(str) for variable in name.split(":")]
    return [":".join(labels) for labels in zip(*columns, strict=True)]


def _r_factor(part: str, frame: pd.DataFrame) -> str:
    if part == "Intercept":
        return "(Intercept)"
    contrast = _CONTRAST.match(part)
    if contrast:
        variable, level = contrast["variable"], contrast["level"]
        if contrast["kind"] == "poly":
            return variable + level
        place = list(frame[variable].cat.categories).index(level)
        return f"{variable}{place + (contrast['kind'] == 'sum')}"
    indicator = _INDICATOR.match(part)
    if indicator:
        return indicator["expression"] + indicator["level"]
    return re.sub(r" ?\*\* ?", "^", part)


def _parts(coef: str) -> list[str]:
    """Split at the colons outside brackets."""
    parts, depth = [""], 0
    for character in coef:
        depth += (character in "([") - (character in ")]")
        if character == ":" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
