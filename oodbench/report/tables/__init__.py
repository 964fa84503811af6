"""Rows -> tables: which rows share one, their columns, lines and captions, published numbers beside them."""
