"""From the names of structures, as formulas have them, to structures."""

from __future__ import annotations

from typing import Protocol

from bayeslmm.covariance.autoregressive import Autoregressive
from bayeslmm.covariance.composite import Composite
from bayeslmm.covariance.compound_symmetry import CompoundSymmetry
from bayeslmm.covariance.independent import Independent
from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.structure import Blocks, Structure
from bayeslmm.covariance.toeplitz import Toeplitz
from bayeslmm.covariance.unstructured import Unstructured

PATTERNS: dict[str, tuple[type[Pattern], bool]] = {
    pattern.names[homogeneous]: (pattern, homogeneous)
    for pattern in (Independent, CompoundSymmetry, Autoregressive, Toeplitz)
    for homogeneous in (False, True)
}
"""Class, and whether there is one variance, of each name but "us"."""


def describe(kind: str) -> str:
    """A structure in words, such as "compound symmetric with one variance"."""
    pattern, homogeneous = PATTERNS[kind]
    variances = "one variance" if homogeneous else "a variance for each"
    return f"{pattern.words} with {variances}"


def is_within(small: Structure, large: Structure) -> bool:
    """Whether the covariance matrices of one block include those of another structure."""
    if not isinstance(large, Pattern):
        return True
    if not isinstance(small, Pattern) or (large.homogeneous and not small.homogeneous):
        return False
    return isinstance(small, (type(large), Independent)) or isinstance(large, Toeplitz)


class HasBlocks(Protocol):
    """What a structure needs of a random-effects term."""

    @property
    def blocks(self) -> Blocks:
        """Partition of the coefficients into blocks that are independent of each other."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Name of the structure of each block."""
        ...


def structure_of(term: HasBlocks) -> Structure:
    """Covariance structure of the random effects of a grouping factor."""
    return blocked(term.blocks, term.kinds)


def blocked(blocks: Blocks, kinds: tuple[str, ...]) -> Structure:
    """Covariance structure of blocks of coefficients, from the name of each."""
    if all(kind == "us" for kind in kinds):
        return Unstructured(sum(map(len, blocks)), blocks)
    parts = [_part(kind, len(block)) for kind, block in zip(kinds, blocks, strict=True)]
    return parts[0] if len(parts) == 1 else Composite(blocks, tuple(parts))


def _part(kind: str, size: int) -> Structure:
    if kind == "us":
        return Unstructured(size, (tuple(range(size)),))
    pattern, homogeneous = PATTERNS[kind]
    return pattern(size, homogeneous)
