"""lm-eval's command line as it runs under several GPUs, on processes that have none.

lm-eval shares the documents among processes only where it counts several GPUs, so the count is
faked; the processes talk through gloo. Neighbours are searched for as they are among many items.
Run it with torchrun.
"""

from __future__ import annotations

import torch

torch.cuda.device_count = lambda: 2

from lm_eval.__main__ import cli_evaluate  # noqa: E402

from prh_eval.harness import requests  # noqa: E402

requests.FEW_ITEMS = 0

if __name__ == "__main__":
    cli_evaluate()
