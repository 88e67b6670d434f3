"""Known covariance matrices of the residuals as plain values and back."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from bayeslmm.data.known_covariance import KnownCovariance
from bayeslmm.data.residual_rows import ResidualSpec
from bayeslmm.exceptions import DataError, StorageError
from bayeslmm.storage.frames import Arrays, Description, Stored, pack_index, unpack_index

PARTS = ("data", "indices", "indptr")
PLACE = "known covariance"


def pack_covariance(spec: ResidualSpec | None, arrays: Arrays) -> Description | None:
    """The known covariance matrix of a structure in JSON, its values among the arrays."""
    known = None if spec is None else spec.known
    if known is None or known.labels is None:
        return None
    arrays |= {f"{PLACE} {part}": np.asarray(getattr(known.matrix, part)) for part in PARTS}
    return {"name": known.name, "labels": pack_index(known.labels, arrays, f"{PLACE} labels")}


def unpack_covariance(saved: Description | None, arrays: Stored) -> dict[str, KnownCovariance]:
    """The matrix that :func:`pack_covariance` described, by its name.

    Raises
    ------
    StorageError
        If it is no covariance matrix.
    """
    if saved is None:
        return {}
    try:
        name, labels = str(saved["name"]), unpack_index(saved["labels"], arrays)
        values = tuple(arrays[f"{PLACE} {part}"] for part in PARTS)
        matrix = sp.csr_array(values, shape=(len(labels), len(labels)))
        matrix.check_format(full_check=True)
        return {name: KnownCovariance.of(name, matrix, labels)}
    except (DataError, KeyError, ValueError, TypeError, IndexError) as error:
        raise StorageError(
            f"The known covariance matrix of the saved model is damaged: {error}"
        ) from error
