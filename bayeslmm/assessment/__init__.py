"""Predictive scores and variance explained."""
