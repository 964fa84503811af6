"""Runs and trainings on a Ray cluster: the only package that imports ray, and only inside functions."""
