"""``python -m prh_eval``: the ``prh-eval`` command where its script is not on the path."""

import sys

from prh_eval.cli import main

sys.exit(main())
