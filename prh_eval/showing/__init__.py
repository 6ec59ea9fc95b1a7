"""An alignment shown: from result files or kept graphs, as text and as a figure."""
