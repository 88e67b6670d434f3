"""Planned studies: their rows, what is taken to be true, and what data simulated from it show."""
