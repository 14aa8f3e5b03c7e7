"""Measured search for schedules, kernel by kernel."""
