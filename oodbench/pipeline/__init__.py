"""One benchmark run: request -> plan -> extract -> fit -> score -> evaluate -> row."""
