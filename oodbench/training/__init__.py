"""Training of any TrainedMethod on images and captions: from a request to a file of weights.

train() in train.py is all that a caller needs; it works alone, under torchrun, and in a process group that is there.
"""
