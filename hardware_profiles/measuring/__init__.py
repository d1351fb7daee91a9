"""Timing of devices and collectives with torch; the only part of the profiles that imports it."""
