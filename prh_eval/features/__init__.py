"""Models in, layer features out; knows no lm-eval."""
