"""Parameters, variances and effects of a fit as labelled tables and text."""
