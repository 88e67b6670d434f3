"""Heat maps of the matrices of the textbook: G, R and V = ZGZ' + R."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design, require_random
from bayeslmm.exceptions import DataError
from bayeslmm.plots.common import (
    LEGEND_SIZE,
    PANEL_TITLE_SIZE,
    QUIET,
    TICK_SIZE,
    Drawing,
    Visuals,
    dataset,
    level_order,
    picture,
    points,
    set_yticks,
    shown_levels,
)
from bayeslmm.plots.panels import WIDTH
from bayeslmm.summaries.parameters import random_covariance

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

MAX_ORDER = 1000
"""Largest matrix drawn."""

MOST_OUTLINED = 60
"""Blocks of the diagonal up to which each is outlined."""

LONGEST_BELOW = 16
"""Letters of the longest label that is written below columns too, which are those of the rows."""
LETTERS_ACROSS = 60
"""Letters that fit across a heat map of the width of a page, with the labels of its rows."""

ABOVE_ZERO, AROUND_ZERO = "Blues", "RdBu_r"
MEANINGS = {
    "V": "V = ZGZ′ + R: response",
    "G": "G: random effects",
    "R": "R: residuals",
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LabelledMatrix:
    """A matrix and what its rows are.

    Attributes
    ----------
    values : ndarray (m, m)
    labels : list of str, length m
        Rows of G: level and coefficient; rows of V and R: level.
    axis : str
        What the labels are.
    owners : list of str, length m
        The level of each row.
    """

    values: Array
    labels: list[str]
    axis: str
    owners: list[str]

    @property
    def starts(self) -> list[int]:
        """Where blocks start that are outlined, and the number of rows; empty for none."""
        starts = _runs(self.owners)
        blocks = len(starts) - 1
        return starts if blocks <= MOST_OUTLINED and blocks < len(self.labels) else []


def covariance_matrix(
    design: Design,
    which: str,
    covariances: Sequence[Array],
    residual: sp.csr_array,
    *,
    place: int | None,
    positions: Indices | None,
    rows: Sequence[Any] | None,
    correlation: bool,
) -> LabelledMatrix:
    """One of the matrices, its rows ordered by the levels of a grouping factor, if there is one.

    Raises
    ------
    ValueError
        If both levels and rows are given.
    DataError
        If it is too large to be drawn, or has no such row.
    """
    if which == "G":
        require_random(design, "there is no G to draw")
        matrix, labels, axis = _of_effects(design, covariances, place, positions)
        owners = [label.rsplit(": ", 1)[0] for label in labels]
    else:
        kept = _rows(design, which, place, positions, rows)
        values = sp.csr_array(residual[kept][:, kept])
        if which == "V":
            z = design.Z_matrix()[kept]
            g = random_covariance(design, covariances, sparse=True)
            values = sp.csr_array(z @ g @ z.T + values)
        matrix = values.toarray()
        labels, axis = _row_labels(design, place, kept)
        owners = labels
    if correlation:
        sds = np.sqrt(np.diag(matrix))
        safe = np.where(sds > 0.0, sds, 1.0)
        matrix = matrix / safe / safe[:, None]
    return LabelledMatrix(values=matrix, labels=labels, axis=axis, owners=owners)


def _row_labels(design: Design, place: int | None, kept: Indices) -> tuple[list[str], str]:
    """Labels of rows of V and R: the level, or that of the data; and what they are."""
    if place is None:
        return [str(label) for label in design.index[kept]], "row"
    factor = design.random[place]
    return [" + ".join(factor.levels[factor.levels_at(row)]) for row in kept], factor.name


def _of_effects(
    design: Design, covariances: Sequence[Array], place: int | None, positions: Indices | None
) -> tuple[Array, list[str], str]:
    """G of all random effects, or of those of chosen levels."""
    several = len(design.random) > 1
    chosen: list[int] = []
    labels: list[str] = []
    start = 0
    for f, factor in enumerate(design.random):
        levels = level_order(design, factor.spec)
        if positions is not None:
            levels = positions if f == place else levels[:0]
        coefs = factor.own_coefs
        for level in levels:
            chosen += range(start + level * len(coefs), start + (level + 1) * len(coefs))
            prefix = f"{factor.name} {factor.levels[level]}" if several else factor.levels[level]
            labels += [f"{prefix}: {coef}" if len(coefs) > 1 else str(prefix) for coef in coefs]
        start += factor.n_levels * len(coefs)
    _check_order("G", len(chosen))
    g = sp.csr_array(random_covariance(design, covariances, sparse=True))
    axis = "random effect" if several else f"{design.random[0].name}"
    return g[chosen][:, chosen].toarray(), labels, axis


def _rows(
    design: Design,
    which: str,
    place: int | None,
    positions: Indices | None,
    rows: Sequence[Any] | None,
) -> Indices:
    """Places of the rows to draw: by level, those of the other factors, then as in the data."""
    if rows is not None and positions is not None:
        raise ValueError("Give rows= or levels=, not both.")
    if rows is not None:
        kept = design.index.get_indexer_for(list(rows))
        if not len(kept) or (kept < 0).any():
            raise DataError("rows names rows that the model has not used: see design.index.")
    else:
        kept = np.arange(design.n)
    if place is not None and positions is not None:
        members, codes = design.random[place].memberships()
        kept = np.unique(members[np.isin(codes, positions)])
    _check_order(which, len(kept))
    if place is None:
        return kept
    ranks = [
        np.argsort(level_order(design, f.spec))[f.members[0].codes[kept]] for f in design.random
    ]
    first = ranks.pop(place)
    return kept[np.lexsort([*ranks[::-1], first])]


def _check_order(name: str, order: int) -> None:
    if order > MAX_ORDER:
        raise DataError(
            f"{name} has {order:,} rows; a picture shows at most {MAX_ORDER:,}. Choose some with "
            "levels=" + ("." if name == "G" else " or rows=.")
        )


def plot_matrices(
    design: Design,
    which: str | Sequence[str],
    covariances: Sequence[Array],
    residual: sp.csr_array,
    how: Drawing,
    *,
    label: str,
    group: str | None = None,
    levels: Sequence[Any] | None = None,
    rows: Sequence[Any] | None = None,
    correlation: bool = False,
) -> PlotCollection:
    """Draw heat maps of covariance matrices, a panel each.

    ArviZ has no visual for images, so that only matplotlib draws; "none" says what would be drawn.

    Parameters
    ----------
    design : Design
        The design.
    which : {"V", "G", "R"} or sequence of them
        Which matrices.
    covariances : sequence of ndarray (k, k)
        Covariance matrix of the coefficients of each grouping factor.
    residual : scipy.sparse.csr_array (n, n)
        Residual variance of a row with weight one.
    how : Drawing
        How to draw it.
    label : str
        Where they come from.
    group, levels, rows, correlation
        As in :meth:`bayeslmm.plots.check_accessors.CheckPlots.covariance`.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    if how.backend not in ("matplotlib", "none"):
        raise ValueError(
            f"backend={how.backend!r} draws no heat maps: use backend='matplotlib', or take the "
            "matrix from V(), G() or R()."
        )
    names = _names(which)
    place, positions = None, None
    if design.random or group or levels is not None:
        first = next((factor.name for factor in design.random), None)
        place, positions = shown_levels(design, group or first, levels)
    matrices = {
        name: covariance_matrix(
            design,
            name,
            covariances,
            residual,
            place=place,
            positions=None if levels is None else positions,
            rows=rows,
            correlation=correlation,
        )
        for name in names
    }
    data = xr.Dataset(
        {
            name: ((f"row_{name}", f"column_{name}"), matrix.values)
            for name, matrix in matrices.items()
        }
    )
    unit = "correlation" if correlation else "covariance"
    columns = min(len(names), 2)
    longest = max(len(text) for matrix in matrices.values() for text in matrix.labels)
    letters = LETTERS_ACROSS - min(longest, LETTERS_ACROSS // 2)
    plural = "matrices" if len(names) > 1 else "matrix"
    return picture(
        how,
        data,
        *(
            _visuals(data[[name]], matrix, name, unit, letters // columns)
            for name, matrix in matrices.items()
        ),
        size=(WIDTH / columns, 5.4 if columns == 1 else 3.0),
        title=f"{unit.capitalize()} {plural} for {design.response}, {label}",
        columns=columns,
    )


def _names(which: str | Sequence[str]) -> list[str]:
    names = [which] if isinstance(which, str) else list(which)
    if not names or set(names) - set(MEANINGS) or len(set(names)) < len(names):
        raise ValueError(f"which={which!r}: 'V', 'G' or 'R', or several of them, are expected.")
    return names


def _visuals(
    data: xr.Dataset, matrix: LabelledMatrix, name: str, unit: str, letters: int
) -> Visuals:
    """What is drawn of a matrix in whose width so many letters fit."""
    import arviz_plots as azp

    most = letters // 2
    single = len(_runs(matrix.labels)) - 1 <= most
    places, labels = _ticks(matrix.labels if single else matrix.owners, most)
    ticks = {"data": data, "values": places, "labels": labels, "size": TICK_SIZE}
    longest = max(map(len, labels))
    below = labels if longest <= LONGEST_BELOW else [""] * len(labels)
    rotation = 90 if (longest + 1) * len(labels) > letters else 0
    blocks = dataset({name: _outlines(matrix)}) if matrix.starts else None
    title = {"data": data, "text": MEANINGS[name], "size": PANEL_TITLE_SIZE}
    written = (numbers, {"data": data, "size": TICK_SIZE})
    return {
        "heatmap": (heatmap, {"data": data, "label": unit}),
        "blocks": blocks
        if blocks is None
        else (azp.visuals.line_xy, {"data": blocks, "color": QUIET, "width": 0.6}),
        "numbers": written if _fits(data[name], letters) else None,
        "title": (azp.visuals.labelled_title, title),
        "ylabel": (azp.visuals.labelled_y, {"data": data, "text": matrix.axis}),
        "xticks": (azp.visuals.set_xticks, {**ticks, "labels": below, "rotation": rotation}),
        "yticks": (set_yticks, ticks),
    }


def _written(value: float) -> str:
    """A number to three digits, in full up to a million."""
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def _fits(da: xr.DataArray, letters: int) -> bool:
    """Whether the numbers of a matrix fit into its cells."""
    values = da.to_numpy()
    if len(values) > letters:
        return False
    return len(values) * (1 + max(len(_written(v)) for v in values.ravel())) <= letters


def _runs(labels: Sequence[str]) -> list[int]:
    """Where runs of equal labels start, and where the last one ends."""
    starts = [i for i in range(len(labels)) if i == 0 or labels[i] != labels[i - 1]]
    return [*starts, len(labels)]


def _ticks(labels: Sequence[str], most: int) -> tuple[Array, list[str]]:
    """Middle and label of each run of equal labels, thinned where there are many."""
    runs = _runs(labels)
    middles = [(start + end - 1) / 2 for start, end in pairwise(runs)]
    step = -(-len(middles) // most)
    return np.array(middles[::step]), [labels[start] for start in runs[:-1:step]]


def _outlines(matrix: LabelledMatrix) -> xr.DataArray:
    """A square around each block of the diagonal."""
    corners = [(a - 0.5, b - 0.5) for a, b in pairwise(matrix.starts)]
    x = [v for a, b in corners for v in (a, b, b, a, a, np.nan)]
    y = [v for a, b in corners for v in (a, a, b, b, a, np.nan)]
    return points(x, y)


def _scale(values: Array) -> tuple[float, float, str]:
    """Range of the colours, with white at zero, and their map."""
    high = float(np.abs(values).max()) or 1.0
    if values.min() < 0.0:
        return -high, high, AROUND_ZERO
    return 0.0, high, ABOVE_ZERO


def heatmap(da: xr.DataArray, target: Any, *, label: str, **kwargs: Any) -> Any:
    """Image of a matrix with its colour bar, first row on top."""
    values = da.to_numpy()
    low, high, colours = _scale(values)
    settings = {"cmap": colours, "vmin": low, "vmax": high, **kwargs}
    if isinstance(target, list):  # the backend "none"
        element = {"function": "heatmap", "values": values, **settings}
        target.append(element)
        return element
    image = target.imshow(values, interpolation="nearest", **settings)
    bar = target.figure.colorbar(image, ax=target, shrink=0.8)
    bar.set_label(label, size=LEGEND_SIZE)
    bar.ax.tick_params(labelsize=TICK_SIZE)
    return image


def numbers(da: xr.DataArray, target: Any, **kwargs: Any) -> Any:
    """Numbers of a small matrix in its cells, light on dark."""
    from arviz_plots.plot_collection import backend_from_object

    backend = backend_from_object(target)
    values = da.to_numpy()
    largest = float(np.abs(values).max()) or 1.0
    return [
        backend.text(
            column,
            row,
            _written(value),
            target,
            **{"color": "white" if abs(value) > 0.6 * largest else "black", **kwargs},
        )
        for (row, column), value in np.ndenumerate(values)
    ][-1]
