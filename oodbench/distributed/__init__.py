"""Runs and trainings on a Ray cluster. Only this package imports ray, and only inside functions."""
