"""Alignment of language models with other encoders, as a plugin for lm-evaluation-harness.

Kept free of imports: the start-up hook imports this package in every Python process.
"""

__version__ = "0.1.0"
