"""A plan or a training carried out on a Ray cluster: the only room that imports ray, and only inside functions."""
