"""Encoders: what open_clip builds, resolved, checked and run."""
