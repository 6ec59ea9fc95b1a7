"""Figures of speed and memory, each beside the plain way in the same run."""
