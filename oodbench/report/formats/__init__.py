"""Tables as LaTeX, Markdown, CSV, Parquet and terminal text; BibTeX of what they cite."""
