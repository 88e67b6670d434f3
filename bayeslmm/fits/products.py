"""Cross-products of some rows: what sites can send in place of data, and others add and fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from bayeslmm.data.coding import declared_coding
from bayeslmm.data.random_terms import keeps_totals
from bayeslmm.data.sources import Source, frames_source, open_source
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.data.survey import Coding
from bayeslmm.exceptions import DataError
from bayeslmm.formula.evaluation import own_functions
from bayeslmm.formula.grammar import Formula, parse
from bayeslmm.formula.matrices import UnseenLevelError
from bayeslmm.likelihood.cells import Cells, cells_of
from bayeslmm.likelihood.origins import (
    Origin,
    check_distinct,
    check_models,
    digest,
    weights_words,
)
from bayeslmm.likelihood.parts import Part, check_weights_name, read_part
from bayeslmm.likelihood.withheld import WITHHELD, check_cells, withheld

_log = logging.getLogger(__name__)

WORDS = "cross-products"
"""What models are said to be built from: paths of files stay where they are."""


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class CrossProducts:
    """Sums over some rows that a linear mixed model needs, and that add up.

    Several sites each make them of their own rows with :meth:`of`, send them as files and keep the
    rows. Whoever adds them has the model of all rows, :meth:`LMM.from_products`: to rounding it is
    that of the pooled data, so one round is enough [1]_.

    Attributes
    ----------
    part : Part
        The sums, with what fixes the columns.
    origins : tuple of Origin
        Which rows they are of.
    borrowed : bool
        Whether what transforms remember came from elsewhere, by ``like=``.

    References
    ----------
    .. [1] Luo, C., et al. (2022). DLMM as a lossless one-shot algorithm for collaborative
       multi-site distributed linear mixed models. Nature Communications, 13, 1678.
       https://doi.org/10.1038/s41467-022-29160-4

    Examples
    --------
    >>> import bayeslmm as blm
    >>> sleep = blm.load_dataset("sleepstudy")
    >>> formula = "Reaction ~ Days + (Days | Subject)"
    >>> sites = [sleep.iloc[:90], sleep.iloc[90:]]
    >>> parts = [blm.CrossProducts.of(formula, rows) for rows in sites]
    >>> model = blm.LMM.from_products(sum(parts))
    >>> print(round(model.reml().criterion, 4))
    1743.6283
    """

    part: Part
    origins: tuple[Origin, ...]
    borrowed: bool = False

    @classmethod
    def of(
        cls,
        formula: str,
        data: Any,
        *,
        weights: str | None = None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        like: CrossProducts | str | PathLike[str] | None = None,
        levels: Mapping[str, Sequence[Any]] | None = None,
        name: str | None = None,
    ) -> Self:
        """Sums over the rows of data.

        Parts can be added if their columns are the same. Where the formula has factors among the
        covariates, or transforms that remember whole columns such as ``scale(x)``, all sites need
        either `levels` or `like`.

        Parameters
        ----------
        formula : str
            As for :class:`LMM`.
        data : DataFrame, path or other source
            As for :class:`LMM`.
        weights : str, optional
            Column of precision weights.
        functions : mapping of str to callable, optional
            Functions of your own that the formula calls. All sites need the same.
        like : CrossProducts or path, optional
            Sums of another site, or their file, whose levels of factors among the covariates and
            whose remembered transforms fix the columns. The data are then read once.
        levels : mapping of str to sequence, optional
            Levels, in order, of each factor among the covariates:
            ``{"arm": ["control", "treated"]}``. The first is the reference.
        name : str, optional
            What the site is called where parts are listed.

        Returns
        -------
        CrossProducts
            Also of data that could not be fitted by themselves, such as rows of one level.

        Raises
        ------
        FormulaError, DataError
            If the formula or the data are wrong; if no row is complete; if a factor among the
            covariates has a level that `like` or `levels` lack.
        StorageError
            If the file of `like` cannot be read.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> rows = blm.load_dataset("Machines").query("Machine != 'C'")
        >>> blm.CrossProducts.of(
        ...     "score ~ Machine + (1 | Worker)", rows, levels={"Machine": ["A", "B", "C"]}
        ... ).coefs
        ('Intercept', 'Machine[T.B]', 'Machine[T.C]')
        """
        if like is not None and levels is not None:
            raise DataError("like= and levels= both fix the columns: give one of them.")
        _check_name(name)
        if like is not None and not isinstance(like, CrossProducts):
            like = cls.load(like, functions=functions)
        if functions is None and like is not None:
            functions = like.part.functions
        own = own_functions(functions)
        read = parse(formula, own)
        source = _source(data)
        check_weights_name(weights, source)
        if keeps_totals(read, None):
            raise DataError(
                f"`{read.source}` has by= or mm(), of which more is kept of rows than "
                "cross-products. Take it out, or build the model from all data: blm.LMM(formula, "
                "source) reads them in batches."
            )
        coding = None
        if like is not None:
            _check_like(like, read, weights)
            coding = Coding(sample=like.part.summary.sample, states=like.part.summary.states)
        elif levels is not None:
            coding, source = declared_coding(read, own, source, weights, levels)
        try:
            part = _with_words(read_part(read, source, weights, own, coding))
        except UnseenLevelError as error:
            raise DataError(
                f"{error} They are those of {'levels=' if like is None else 'like='}, which all "
                "parts share: make all parts again with levels= that has every level."
            ) from error
        summary = part.summary
        origin = Origin(name=name, rows=summary.n, dropped=summary.n_dropped, digest=digest(part))
        return cls(part=part, origins=(origin,), borrowed=like is not None)

    @classmethod
    def total(cls, parts: Iterable[CrossProducts], *, allow_equal: bool = False) -> CrossProducts:
        """The sum of parts, whose order makes no difference but for rounding.

        Parameters
        ----------
        parts : iterable of CrossProducts
            At least one.
        allow_equal : bool
            Whether to add parts with the same sums, which are taken for the same rows otherwise.

        Returns
        -------
        CrossProducts

        Raises
        ------
        DataError
            If they are of different models or columns, or of the same rows.
        """
        found = list(parts)
        for other in found:
            if not isinstance(other, CrossProducts):
                raise TypeError(f"total() adds CrossProducts, got {type(other).__name__}.")
        if not found:
            raise DataError("There are no cross-products to add.")
        while len(found) > 1:  # in pairs, so that levels are united about log2 times
            pairs = zip(found[::2], found[1::2], strict=False)
            rest = found[-1:] if len(found) % 2 else []
            found = [one._plus(two, allow_equal=allow_equal) for one, two in pairs] + rest
        return found[0]

    def __add__(self, other: CrossProducts) -> CrossProducts:
        """Of both sets of rows: see :meth:`total`."""
        if not isinstance(other, CrossProducts):
            return NotImplemented
        return self._plus(other, allow_equal=False)

    def __radd__(self, other: Any) -> CrossProducts:
        """Themselves, for ``sum(parts)``, which begins with 0."""
        if isinstance(other, int) and other == 0:
            return self
        return NotImplemented

    def _plus(self, other: CrossProducts, *, allow_equal: bool) -> CrossProducts:
        check_models(self.part, other.part, (self._words, other._words))
        check_distinct(self.origins, other.origins, allow_equal=allow_equal)
        return CrossProducts(
            part=self.part + other.part,
            origins=self.origins + other.origins,
            borrowed=self.borrowed and other.borrowed,
        )

    @property
    def _words(self) -> str:
        count = len(self.origins)
        return self.origins[0].words if count == 1 else f"a sum of {count} parts"

    # --- what is in them ---------------------------------------------------------------

    @property
    def formula(self) -> str:
        """The formula as written."""
        return self.part.formula.source

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.part.summary.n

    @property
    def n_dropped(self) -> int:
        """Number of rows that were dropped as incomplete."""
        return self.part.summary.n_dropped

    @property
    def coefs(self) -> tuple[str, ...]:
        """Columns of the fixed effects, also those that turn out to depend on others."""
        return self.part.layout.names[self.part.layout.right]

    @property
    def parts(self) -> pd.DataFrame:
        """Which parts were added: name, rows, dropped rows, digest."""
        columns = ["name", "rows", "dropped", "digest"]
        rows = [[getattr(origin, name) for name in columns] for origin in self.origins]
        return pd.DataFrame(rows, columns=columns)

    @property
    def cells(self) -> list[Cells]:
        """All counts of rows that the sums tell."""
        return cells_of(self.part)

    @property
    def smallest_cell(self) -> int:
        """Rows of the smallest cell that has some.

        Cells are the levels of each grouping factor and of each factor among the covariates, and
        all combinations of levels whose counts the sums tell: those of interactions, and without
        weights also of two grouping factors, and of grouping factors with factors.
        """
        return min((own.smallest for own in self.cells), default=self.n)

    def table(self) -> pd.DataFrame:
        """Number of rows of each level of grouping factors and of factors among the covariates.

        Returns
        -------
        pandas.DataFrame
            One column, ``rows``, by ``factor`` and ``level``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> oats = blm.load_dataset("Oats")
        >>> blm.CrossProducts.of("yield ~ Variety + (1 | Block)", oats).table().loc["Variety"]
                     rows
        level
        Golden Rain    24
        Marvellous     24
        Victory        24
        """
        found = [own for own in self.cells if len(own.factors) == 1]
        keys = [(own.name, label) for own in found for label in own.labels]
        index = pd.MultiIndex.from_tuples(keys, names=["factor", "level"])
        counts = np.concatenate([np.empty(0, dtype=np.intp), *(own.counts for own in found)])
        return pd.DataFrame({"rows": counts}, index=index)

    # --- files -------------------------------------------------------------------------

    def save(
        self,
        path: str | PathLike[str],
        *,
        overwrite: bool = False,
        smallest_cell: int | None = None,
    ) -> None:
        """Write them to one file, which holds numbers and text and no code.

        Parameters
        ----------
        path : str or path
            Its name ends in ``.products``.
        overwrite : bool
            Whether to replace a file.
        smallest_cell : int, optional
            Refuse if some cell has 1 to smallest_cell - 1 rows, and withhold what is of single
            rows: values of rows, smallest and largest values. What it does not protect is in the
            how-to of federated fits. Without it a file has a row of the data for each level of
            factors among the covariates, and extremes.

        Raises
        ------
        ValueError
            If the name ends otherwise, or smallest_cell is no whole number from 2 on.
        FileNotFoundError, FileExistsError
            If there is no such folder, or there is such a file already.
        DataError
            If cells are too small, or the columns need values of single rows.
        StorageError
            If the system refuses to write, or values cannot be stored.
        """
        from bayeslmm.storage.products import check_products_path, write_products

        check_products_path(Path(path), overwrite=overwrite)
        part = self.part
        if smallest_cell is not None:
            if type(smallest_cell) is not int or smallest_cell < 2:
                raise ValueError(
                    f"smallest_cell must be a whole number from 2 on, got {smallest_cell!r}."
                )
            check_cells(part, self.cells, smallest_cell)
            part = withheld(part, borrowed=self.borrowed)
            _log.info("%s: withheld are %s.", path, WITHHELD)
        else:
            _log.info(
                "%s holds values of %d rows of the data, and smallest and largest values; "
                "smallest_cell= withholds them.",
                path,
                len(part.summary.sample),
            )
        origins = [
            {"name": o.name, "rows": o.rows, "dropped": o.dropped, "digest": o.digest}
            for o in self.origins
        ]
        facts = {"origins": origins, "borrowed": self.borrowed}
        write_products(part, facts, Path(path), overwrite=overwrite)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Self:
        """Read what :meth:`save` wrote.

        Nothing in a file is run: a file from anybody gives sums that fit together, or an error.
        Whether the sums are those of real rows no file can prove.

        Parameters
        ----------
        path : str or path
            A ``.products`` file.
        functions : mapping of str to callable, optional
            Functions of your own that the formula calls; a file holds their names only.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        StorageError
            If it was not written by :meth:`save`, is damaged or was changed (its SHA-256 is
            recorded), has another layout, or the installed libraries make other columns of it.

        Examples
        --------
        >>> import bayeslmm as blm, pathlib, tempfile
        >>> rows = blm.load_dataset("Dyestuff")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "site.products"
        ...     blm.CrossProducts.of("Yield ~ 1 + (1 | Batch)", rows).save(path, smallest_cell=5)
        ...     found = blm.CrossProducts.load(path)
        >>> found.n
        30
        """
        from bayeslmm.storage.products import read_products

        part, facts = read_products(Path(path), functions)
        origins = tuple(Origin(**own) for own in facts["origins"])
        found = cls(part=part, origins=origins, borrowed=facts["borrowed"])
        _check_origins(found, path)
        return found

    def __repr__(self) -> str:
        lines = [f"Cross-products of {self.formula}"]
        if self.part.weights is not None:
            lines.append(f"Weights: {self.part.weights}")
        dropped = f", {self.n_dropped} dropped as incomplete" if self.n_dropped else ""
        lines.append(f"Rows: {self.n}{dropped}")
        names = ", ".join(origin.words for origin in self.origins[:10])
        more = len(self.origins) - 10
        lines.append(f"Parts: {len(self.origins)} ({names}{f', {more} more' if more > 0 else ''})")
        lines.append(f"Columns: {', '.join(self.coefs)}")
        cells = self.cells
        lines += [_cell_words(own) for own in cells if len(own.factors) == 1]
        smallest = min(cells, key=lambda own: own.smallest, default=None)
        if smallest is not None:
            lines.append(
                f"Smallest cell: {smallest.smallest} rows ({' by '.join(smallest.factors)})"
            )
        lines.append(f"Size: {_size(self.part) / 1e3:,.1f} kB")
        return "\n".join(lines)


def _cell_words(cells: Cells) -> str:
    counts = cells.counts[cells.counts > 0]
    empty = len(cells.counts) - len(counts)
    none = f", {empty} without rows" if empty else ""
    few = (
        f"{counts.min()} to {counts.max()} rows"
        if counts.min() < counts.max()
        else (f"{counts.min()} rows each")
    )
    return f"{cells.name}: {len(counts)} level{'s' * (len(counts) != 1)} of {few}{none}"


def _size(part: Part) -> int:
    """Bytes of the sums."""
    own = part.products
    arrays = [own.fixed, *own.random, *own.mixed, *part.summary.counts.values()]
    for coupling in own.couplings:
        arrays += [coupling.first, coupling.second, coupling.blocks]
    return sum(array.nbytes for array in arrays)


def _with_words(part: Part) -> Part:
    return replace(part, summary=replace(part.summary, words=WORDS))


def design_of(products: Any, known: Mapping[str, Any]) -> SummarisedDesign:
    """The design of a model of all rows that went into cross-products, of which some are known."""
    if not isinstance(products, CrossProducts):
        raise TypeError(
            f"from_products() takes CrossProducts, got {type(products).__name__}. Add several "
            "with CrossProducts.total(parts); read a file with CrossProducts.load(path)."
        )
    count = len(products.origins)
    words = f"{WORDS} of {count} parts" if count > 1 else WORDS
    summary = replace(products.part.summary, words=words)
    return replace(products.part, summary=summary).design(known)


# --- what goes in ----------------------------------------------------------------------


def _check_name(name: Any) -> None:
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise TypeError(f"name must be text, got {name!r:.80}.")


def _source(data: Any) -> Source:
    source = open_source(data)
    return frames_source("The data frame", [data]) if source is None else source


def _check_like(like: CrossProducts, formula: Formula, weights: str | None) -> None:
    if like.formula != formula.source:
        raise DataError(
            f"like= is of the formula `{like.formula}`, not `{formula.source}`: parts that are to "
            "be added have one formula, written in one way."
        )
    if like.part.weights != weights:
        raise DataError(
            f"like= has {weights_words(like.part)}, and here weights={weights!r}: give all parts "
            "the same."
        )


def _check_origins(products: CrossProducts, path: Any) -> None:
    from bayeslmm.storage.checked import check_fit

    origins = products.origins
    check_fit(bool(origins), "parts")
    check_fit(sum(origin.rows for origin in origins) == products.n, "numbers of rows")
    check_fit(sum(origin.dropped for origin in origins) == products.n_dropped, "dropped rows")
    if len(origins) == 1:
        check_fit(origins[0].digest == digest(products.part), "digest")
