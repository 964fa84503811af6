"""Atomic files, downloads, archives, and the content-addressed store, local and shared."""
