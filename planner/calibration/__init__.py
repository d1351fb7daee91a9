"""Calibration: named constants that multiply the seconds of classes of operations, fitted to measured runs."""
