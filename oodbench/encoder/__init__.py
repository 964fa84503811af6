"""Encoders: CLIP models are found, checked, loaded and run."""
