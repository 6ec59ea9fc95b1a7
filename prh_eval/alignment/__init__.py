"""The alignment core: layer features in, neighbour graphs and scores out; knows only tensors."""
