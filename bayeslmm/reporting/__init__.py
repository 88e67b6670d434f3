"""Tables and text for papers of a fit."""
