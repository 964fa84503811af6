"""An embedded world of named glyphs, textures and digits, with a small CLIP encoder trained on it."""
