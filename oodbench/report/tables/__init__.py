"""Tables of results: which results are comparable, columns, lines, captions, and published numbers."""
