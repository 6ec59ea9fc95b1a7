"""References: what a language model is aligned with, one YAML file each, and their graphs."""
