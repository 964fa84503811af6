"""Image sets by name: catalogue, loaders, subsets, checks, downloads, the embedded glyphs. Imports no torch."""
