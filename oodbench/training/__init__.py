"""`oodbench train`: train the weights of a TrainedMethod on images with captions; train() in train.py is the entry."""
