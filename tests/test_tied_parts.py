"""Sums over tied pairs of rows: parts of the data in any basis give the stack of all rows."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest
from dense import Columns
from test_residual_likelihood import CASES, GROUPS, TERMS, N, case_of

from bayeslmm.likelihood.crossprod import working_basis, working_columns
from bayeslmm.likelihood.stack import stack_of_sums, stack_products
from bayeslmm.likelihood.tied import tied_products

CLOSE = {"rtol": 1e-11, "atol": 1e-10}
"""Sums of a few hundred products of order one, in another order and another basis."""

SETUPS = [
    *((name, "lead-tail", False) for name in CASES),
    *(("us", terms, True) for terms in TERMS),
    *(("car1-power", terms, True) for terms in ("lead", "tail-slopes")),
    ("exp", "pooled", True),
    ("strata-powers", "pooled", False),
]


def pooled_case(name, weighted):
    """Two levels of one grouping factor in each row, and another factor."""
    case, structure, rows = case_of(name, "crossing", weighted)
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 7, (2, N))
    Z = np.column_stack([np.ones(N), rng.normal(size=N)])
    pool = Columns(first, 0.6 * Z, ((0, 1),), 7, others=((second, 0.4 * Z),))
    return replace(case, random=(*case.random, pool)), structure, rows


def part_of(case, structure, rows, here, seen):
    """The sums of some rows, in a basis of their own and with levels numbered as they come."""
    part = replace(
        case,
        y=case.y[here],
        X=case.X[here],
        weights=None if case.weights is None else case.weights[here],
    )
    random = []
    for columns, numbers in zip(case.random, seen, strict=True):
        number = np.frompyfunc(lambda code, own=numbers: own.setdefault(code, len(own)), 1, 1)
        others = tuple(
            (number(codes[here]).astype(np.intp), z[here]) for codes, z in columns.others
        )
        codes = number(columns.codes[here]).astype(np.intp)
        random.append(replace(columns, codes=codes, Z=columns.Z[here], others=others))
    log_weights = 0.0 if part.weights is None else float(np.sum(np.log(part.weights)))
    return tied_products(
        *working_columns(part.y, part.X, random, part.weights, seen_basis(case)),
        structure.bind(rows.take(here)),
        log_weights,
    )


def seen_basis(case):
    """The working basis of the first rows."""
    first = slice(0, 40)
    random = [
        replace(
            c,
            codes=c.codes[first],
            Z=c.Z[first],
            others=tuple((o[first], z[first]) for o, z in c.others),
        )
        for c in case.random
    ]
    return working_basis(case.y[first], case.X[first], random)


@pytest.mark.parametrize(("name", "terms", "weighted"), SETUPS)
def test_parts_give_the_stack_of_all_rows(name, terms, weighted):
    build = pooled_case(name, weighted) if terms == "pooled" else case_of(name, terms, weighted)
    case, structure, rows = build
    group = np.arange(N) if rows.group is None else rows.group
    order = np.random.default_rng(1).permutation(GROUPS)
    wide = [np.flatnonzero(np.isin(group % GROUPS, order[start::3])) for start in range(3)]
    seen = [{} for _ in case.random]
    parts = [part_of(case, structure, rows, here, seen) for here in wide]
    total = reduce(add, parts)
    old, new = seen_basis(case), working_basis(case.y, case.X, case.random, case.weights)
    p = len(new.shift)
    change = np.zeros((p + 1, p + 1))
    change[:p, :p] = np.linalg.solve(old.fixed, new.fixed)
    change[:p, p] = np.linalg.solve(old.fixed, old.shift - new.shift)
    change[p, p] = 1.0
    inner = zip(old.random, new.random, strict=True)
    total = total.changed(new, change, [np.linalg.solve(a, b) for a, b in inner])
    total = total.of_levels([np.array(list(own), dtype=np.intp) for own in seen])
    whole = stack_products(case.y, case.X, case.random, structure.bind(rows), weights=case.weights)
    found = stack_of_sums(total, case.random)
    for shape in np.random.default_rng(8).normal(0.0, 0.4, (2, structure.n_shape)):
        a, b = found.products(shape), whole.products(shape)
        assert a.log_weights == pytest.approx(b.log_weights, rel=1e-13, abs=1e-12)
        np.testing.assert_allclose(a.fixed, b.fixed, **CLOSE)
        for mine, theirs in zip((*a.random, *a.mixed), (*b.random, *b.mixed), strict=True):
            np.testing.assert_allclose(mine, theirs, **CLOSE)
        for mine, theirs in zip(a.couplings, b.couplings, strict=True):
            assert mine.factors == theirs.factors
            np.testing.assert_array_equal(mine.first, theirs.first)
            np.testing.assert_array_equal(mine.second, theirs.second)
            np.testing.assert_allclose(mine.blocks, theirs.blocks, **CLOSE)
        assert found.law.entries.size == whole.law.entries.size
