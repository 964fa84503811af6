"""One method fitted on your images: fit, score, decide, save, load and explain."""
