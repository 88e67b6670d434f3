"""Terms of a model taken out one at a time: tests of deletions, and backward elimination."""
