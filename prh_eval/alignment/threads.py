"""How many threads read features together; NumPy and torch let others run while they compute."""

from __future__ import annotations

import os

READERS = min(8, os.cpu_count() or 1)
"""A thread a core; more than a few would wait for memory."""
