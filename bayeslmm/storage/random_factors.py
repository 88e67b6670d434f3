"""Grouping factors out of a file, and their relationships as plain values and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.data.grouping import GroupingFactor, factor_of_cells
from bayeslmm.data.random_factors import RandomFactor
from bayeslmm.data.random_terms import (
    amalgamated,
    factor_spec,
    grouped_rows,
    known_rows,
    members_of_rows,
    related_levels,
)
from bayeslmm.data.relationships import Relationship
from bayeslmm.data.strata import Strata, find_strata, plain_labels, stratum_coefs, term_strata
from bayeslmm.exceptions import BayesLMMError, DataError, StorageError
from bayeslmm.formula.grammar import Formula, RandomTerm
from bayeslmm.formula.moments import Moments
from bayeslmm.storage.checked import check_fit, checked_array, checked_numbers, checked_texts
from bayeslmm.storage.frames import Arrays, Description, Stored, pack_index, unpack_index


def stored_factors(
    formula: Formula,
    labels: Sequence[Description],
    data: pd.DataFrame,
    arrays: Stored,
    known: Sequence[Relationship | None],
) -> tuple[RandomFactor, ...]:
    """Grouping factors of the formula, with the columns and labels of the file."""
    groups = amalgamated(formula)
    check_fit(len(groups) == len(labels) == len(known), "grouping factors")
    return tuple(
        _factor(i, key, formula, groups[key], labels[i], data, arrays, known[i])
        for i, key in enumerate(groups)
    )


def _factor(
    i: int,
    key: str,
    formula: Formula,
    terms: Sequence[RandomTerm],
    labels: Description,
    data: pd.DataFrame,
    arrays: Stored,
    known: Relationship | None,
) -> RandomFactor:
    try:
        found, grouping, pool = grouped_rows(terms[0], data)
    except DataError as error:
        raise StorageError(f"The saved model cannot be used: {error}") from error
    if known is not None:
        check_fit(len(grouping.parts) == 1, "relationships")
        try:
            found, grouping, known = related_levels(found, grouping, known)
        except DataError as error:
            raise StorageError(f"The saved model cannot be used: {error}") from error
    coefs, n = checked_texts(labels["coefs"]), len(data)
    members = members_of_rows(found, pool)
    codes = checked_array(arrays, f"codes {i}", (n * len(members),), "i")
    blocks = tuple(tuple(block) for block in labels["blocks"])
    check_fit(
        sorted(place for block in blocks for place in block) == [*range(len(coefs))], "blocks"
    )
    check_fit((labels["name"], labels["key"]) == (grouping.name, key), "grouping factors")
    check_fit(
        labels["levels"] == text_hash(grouping.levels.tolist())
        and np.array_equal(codes, np.concatenate([member.codes for member in members])),
        f"levels of {grouping.name}",
    )
    kinds = [str(kind) for kind in labels["kinds"]]
    check_fit(
        len(kinds) == len(blocks)
        and all(kind == "us" or len(b) > 1 for kind, b in zip(kinds, blocks, strict=True))
        and list(dict.fromkeys(kinds)) == list(dict.fromkeys(t.structure for t in terms)),
        "covariance structures",
    )
    z = checked_numbers(arrays, f"Z {i}", (n, len(coefs)))
    strata = _strata(formula, terms, labels, coefs, data, found, grouping)
    spec = factor_spec(grouping, key, terms, coefs, blocks, kinds, known, strata)
    return known_rows(spec, members, z)


def _strata(
    formula: Formula,
    terms: Sequence[RandomTerm],
    labels: Description,
    coefs: tuple[str, ...],
    data: pd.DataFrame,
    codes: NDArray[np.intp],
    grouping: GroupingFactor,
) -> list[Strata | None]:
    """Strata of the terms with ``by=``, found again in the data."""
    saved = labels.get("strata", [None] * len(terms))
    same = len(saved) == len(terms)
    what = f"strata of {grouping.name}"
    check_fit(
        same and all((s is None) == (t.by is None) for s, t in zip(saved, terms, strict=True)),
        what,
    )
    result: list[Strata | None] = []
    for place, term in zip(saved, terms, strict=True):
        strata = None
        if place is not None:
            start, width = (int(value) for value in place)
            check_fit(start >= 0 and width > 0, what)
            try:
                _, of, of_level = find_strata(formula.source, term, data, codes, grouping)
            except BayesLMMError as error:
                raise StorageError(f"The saved model cannot be used: {error}") from error
            names = plain_labels(coefs[start : start + width], of)
            strata = term_strata(of, of_level, names, start)
            stop = start + strata.places.size
            check_fit(list(coefs[start:stop]) == stratum_coefs(names, of), what)
        result.append(strata)
    return result


def pack_relationship(known: Relationship | None, name: str, arrays: Arrays) -> Description | None:
    """A relationship in JSON, its matrix among the arrays under `name`."""
    if known is None:
        return None
    labels = pack_index(known.labels, arrays, f"{name} labels")
    if sp.issparse(known.matrix):
        parts = {part: getattr(known.matrix, part) for part in ("data", "indices", "indptr")}
        arrays |= {f"{name} {part}": np.asarray(values) for part, values in parts.items()}
    else:
        arrays[name] = known.matrix
    return {"name": name, "kind": known.kind, "labels": labels, "sparse": sp.issparse(known.matrix)}


def unpack_relationship(saved: Description | None, arrays: Stored) -> Relationship | None:
    """The relationship that :func:`pack_relationship` described."""
    if saved is None:
        return None
    name, labels = saved["name"], unpack_index(saved["labels"], arrays)
    try:
        if saved["sparse"]:
            parts = tuple(arrays[f"{name} {part}"] for part in ("data", "indices", "indptr"))
            matrix: Any = sp.csc_array(parts, shape=(len(labels), len(labels)))
            matrix.check_format(full_check=True)
        else:
            matrix = arrays[name]
        return Relationship(matrix, labels, saved["kind"])
    except (ValueError, TypeError, IndexError) as error:
        raise StorageError(f"The relationships of the saved model are damaged: {error}") from error


def pack_grouping(factor: GroupingFactor, arrays: Arrays, name: str) -> Description:
    """The levels of a grouping factor in JSON, its cells among the arrays."""
    arrays[f"{name} cells"] = np.asarray(factor.cells)
    parts = enumerate(factor.parts)
    return {
        "parts": [pack_index(part, arrays, f"{name} part {j}") for j, part in parts],
        "levels": text_hash(factor.levels.tolist()),
    }


def unpack_grouping(
    names: Sequence[str], stored: Description, arrays: Stored, name: str
) -> GroupingFactor:
    """The grouping factor that :func:`pack_grouping` described, of variables `names`."""
    parts = [unpack_index(part, arrays) for part in stored["parts"]]
    cells = arrays[f"{name} cells"]
    right = cells.dtype.kind == "i" and cells.ndim == 2 and cells.shape[1] == len(parts)
    right = right and len(parts) == len(names) and len(cells) > 0 and int(cells.min()) >= 0
    right = right and all(np.max(cells[:, j]) < len(part) for j, part in enumerate(parts))
    check_fit(right, f"levels of {':'.join(names)}")
    found = factor_of_cells(names, parts, cells.astype(np.intp))
    check_fit(stored["levels"] == text_hash(found.levels.tolist()), f"levels of {found.name}")
    return found


def moment_arrays(name: str, moments: Moments) -> Arrays:
    """Moments as arrays."""
    return {f"{name} {f.name}": getattr(moments, f.name) for f in fields(Moments)[1:]}


def stored_moments(name: str, n: int, arrays: Stored) -> Moments:
    """The moments of n rows that :func:`moment_arrays` made arrays of."""
    own = {field.name: arrays[f"{name} {field.name}"] for field in fields(Moments)[1:]}
    k = len(own["centre"])
    lengths = [len(own[part]) for part in ("low", "high", "filled")]
    check_fit(own["triangle"].shape[1:] == (k + 1,) and lengths == [k] * 3, "moments")
    return Moments(n=n, **own)


def text_hash(texts: Sequence[str]) -> str:
    """SHA-256 of labels."""
    parts = (f"{len(text)}:{text}".encode("utf-8", "surrogatepass") for text in texts)
    return hashlib.sha256(b"".join(parts)).hexdigest()
