"""Figures of a profile from measurements; no torch."""
