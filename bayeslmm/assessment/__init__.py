"""Predictive scores, variance explained and diagnostics of a fit."""
