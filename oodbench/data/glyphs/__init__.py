"""The embedded benchmark: rendered glyphs, textures and digits with names, and a small CLIP encoder for them."""
