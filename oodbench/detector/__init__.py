"""A method put to use: fit, score, decide, save, load and explain, on images of any kind."""
