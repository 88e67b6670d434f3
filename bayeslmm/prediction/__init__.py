"""Predictions and simulations of a fit."""
