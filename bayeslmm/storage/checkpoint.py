"""A reading of data beyond memory that is not complete, as a file: sums of the pieces so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.survey import Coding
from bayeslmm.estimation.reading import Reading
from bayeslmm.exceptions import StorageError
from bayeslmm.formula.evaluation import UserFunctions, Variables
from bayeslmm.formula.grammar import Formula
from bayeslmm.likelihood.parts import Part
from bayeslmm.likelihood.piecewise import Findings, Request
from bayeslmm.storage.checked import check_fit
from bayeslmm.storage.frames import Arrays, Description, Stored
from bayeslmm.storage.layout import reading
from bayeslmm.storage.parts import pack_part, unpack_part
from bayeslmm.storage.products import packed, unpacked
from bayeslmm.writing import check_replaceable, replacing

MAGIC = b"bayeslmm reading\n\n"


class CheckpointFile:
    """Where a reading is saved: a checkpoint of :mod:`bayeslmm.estimation.reading`.

    Parameters
    ----------
    path : pathlib.Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.words = f"`{path}`"

    def load(
        self, formula: Formula, weights: str | None, functions: UserFunctions
    ) -> Reading | None:
        """What was saved of a reading of this model; None if there is no file.

        Raises
        ------
        FileNotFoundError, FileExistsError
            If a file cannot be there.
        StorageError
            If it is no such file, damaged, or of another model.
        """
        check_replaceable(self.path, overwrite=True)
        if not self.path.exists():
            return None
        with reading(self.words):
            content = self.path.read_bytes()
            if content[: len(MAGIC)] != MAGIC:
                raise StorageError(
                    f"{self.words} is no file of checkpoint=, and is left as it is: give another "
                    "name."
                )
            document, arrays = unpacked(content, self.words, MAGIC)
            self._check_model(document, formula, weights)
            return _reading(document, arrays, functions)

    def save(self, state: Reading) -> None:
        """Save a reading in place of what was saved before.

        Raises
        ------
        StorageError
            If levels cannot be stored, or the system refuses to write; what was there stays.
        """
        arrays: Arrays = {}
        sums = [_pack(i, size, found, arrays) for i, (size, found) in enumerate(state.sums)]
        request = state.request
        document = {
            "formula": request.formula.source,
            "weights": request.weights,
            "rows": request.rows,
            "every": request.every,
            "share": state.share,
            "keys": list(state.keys),
            "sums": sums,
        }
        content = packed(document, arrays, MAGIC)
        with replacing(self.path, overwrite=True) as temporary:
            temporary.write_bytes(content)

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)

    def _check_model(self, document: Description, formula: Formula, weights: str | None) -> None:
        was, now = (document["formula"], document["weights"]), (formula.source, weights)
        if was != now:
            raise StorageError(
                f"{self.words} has sums of {_model_words(*was)}, and this is "
                f"{_model_words(*now)}. Give another name, or remove it."
            )


def _model_words(formula: str, weights: str | None) -> str:
    return f"`{formula}`" + ("" if weights is None else f" with weights `{weights}`")


def _pack(i: int, size: int, found: Findings, arrays: Arrays) -> Description:
    described = None
    if found.part is not None:
        described, own = pack_part(found.part)
        own["responses"] = _responses(found.part)
        arrays |= {f"{i} {name}": array for name, array in own.items()}
    return {
        "pieces": size,
        "n": found.n,
        "n_dropped": found.n_dropped,
        "kinds": dict(found.kinds),
        "part": described,
    }


def _responses(part: Part) -> NDArray[np.float64]:
    """Response and offsets in the rows that stand for all, which functions of the user make."""
    rows = Variables(part.summary.sample)
    values = [part.encodings.response, *part.encodings.offsets]
    return np.array([value.value(rows) for value in values], dtype=np.float64)


# --- back ------------------------------------------------------------------------------


def _reading(document: Description, arrays: Stored, functions: UserFunctions) -> Reading:
    sums = [_findings(i, stored, arrays, functions) for i, stored in enumerate(document["sums"])]
    keys, sizes = tuple(map(str, document["keys"])), [size for size, _ in sums]
    falling = all(size > 0 and size & (size - 1) == 0 for size in sizes)
    falling = falling and sizes == sorted(set(sizes), reverse=True)
    check_fit(falling and sum(sizes) == len(keys), "pieces")
    part = next(found.part for _, found in sums if found.part is not None)
    request = Request(
        formula=part.formula,
        weights=part.weights,
        functions=part.functions,
        coding=Coding(sample=part.summary.sample, states=part.summary.states),
        units={},
        rows=document["rows"],
        every=bool(document["every"]),
    )
    return Reading(request=request, share=float(document["share"]), keys=keys, sums=tuple(sums))


def _findings(
    i: int, stored: Description, arrays: Stored, functions: UserFunctions
) -> tuple[int, Findings]:
    part: Part | None = None
    n: Any = stored["n"]
    if stored["part"] is not None:
        start = f"{i} "
        own = {name.removeprefix(start): arrays[name] for name in arrays if name.startswith(start)}
        part = unpack_part(stored["part"], own, functions)
        check_fit(n == part.summary.n, "numbers of rows")
        if not np.array_equal(_responses(part), own["responses"], equal_nan=True):
            raise StorageError(
                "The functions that are given make other values of the response than those of "
                "the reading that was saved. Give the same ones, or another name."
            )
    found = Findings(
        n=n,
        n_dropped=stored["n_dropped"],
        kinds=stored["kinds"],
        part=part,
        samples=(),
        found={},
    )
    return stored["pieces"], found
