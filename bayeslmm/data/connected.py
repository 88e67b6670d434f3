"""Rows and levels that nothing ties to each other: connected parts of a graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from bayeslmm.data.design import Design

Indices = NDArray[np.intp]


def connected(edges: Sequence[tuple[Indices, Indices]], size: int) -> Indices:
    """Part (size,) of each node of a graph with edges between pairs of nodes."""
    none = np.zeros(0, dtype=np.intp)
    ends = tuple(np.concatenate([none, *(edge[i] for edge in edges)]) for i in range(2))
    graph = sp.coo_array((np.ones(len(ends[0])), ends), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.intp)


def by_part(part: Indices) -> list[Indices]:
    """Nodes of each part, in order."""
    order = np.argsort(part, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(part[order])) + 1)


def independent_parts(design: Design) -> list[Indices]:
    """Rows of each part of the data that shares no level, nor related or correlated ones."""
    edges, size, rows = [], design.n, np.arange(design.n)
    for factor in design.random:
        known = factor.relationship
        for member in factor.members:
            own = member.codes if known is None else known.families[member.codes]
            edges.append((rows, size + own))
        size += factor.n_levels
    tied = None if design.residual_rows is None else design.residual_rows.group
    if tied is not None:
        edges.append((rows, size + tied))
        size += int(tied.max()) + 1
    return by_part(connected(edges, size)[: design.n])
