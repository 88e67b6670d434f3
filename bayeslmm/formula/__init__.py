"""Formulas: lme4's grammar read once into a tree, and the tree made into columns of numbers.

From a string to arrays a reader passes:

1. `grammar.parse`: a formula; sides, random-effects terms, offsets;
2. `syntax.tokens`: its text in tokens;
3. `expressions.read`: the Python of a token, against the list of what is allowed;
4. `syntax.nest`: brackets;
5. `syntax.read_sum`: a sum in terms, bars and offsets;
6. `terms.side`: the products of operands that a sum stands for, kept as a `Side`;
7. `evaluation.Variables`: the columns of a frame in few forms;
8. `matrices.evaluate`: the model matrix of a side;
9. `matrices.plain_columns`, or `formulaic_seam.formulaic_columns` for what is not plain;
10. `evaluation.evaluate_expression`: the values of the Python of an operand.

`matrices.Encoding` is how the same columns are built on other data.
"""

from bayeslmm.formula.grammar import Formula, RandomTerm, parse

__all__ = ["Formula", "RandomTerm", "parse"]
