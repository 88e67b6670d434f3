"""The formulas of the reference fits by R in bayeslmm's grammar, and lme4's labels of levels."""

import re
from typing import Any

import pandas as pd

# lme4 pastes the labels of an interaction of grouping factors and so merges two cells of these
# data; the fit with the true cells is what the formula means.
STANDS_FOR = {"sim_labels_collide__f1f2_lme4_reml": "sim_labels_collide__cell_reml"}


def translated(fit: dict[str, Any]) -> str:
    """The formula of a reference fit in bayeslmm's grammar.

    Contrasts other than treatment ones, which R takes from an argument or from the class of an
    ordered factor, are written out.
    """
    formula = fit["formula"]
    for variable, contrasts in dict(fit["contrasts_used"] or {}).items():
        if contrasts != "contr.treatment":
            formula = re.sub(rf"\b{variable}\b", f"C({variable}, {contrasts})", formula)
    return formula


def r_levels(name: str, frame: pd.DataFrame) -> list[str]:
    """lme4's label of the level of each row for a grouping factor it calls `name`."""
    columns = [frame[variable].astype(str) for variable in name.split(":")]
    return [":".join(labels) for labels in zip(*columns, strict=True)]
