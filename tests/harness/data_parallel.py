"""lm-eval's command line as it runs under several GPUs, on processes that have none.

lm-eval shares the documents among processes only where it counts several GPUs, so the count is
faked; the processes talk through gloo. Run it with torchrun.
"""

from __future__ import annotations

import torch

torch.cuda.device_count = lambda: 2

from lm_eval.__main__ import cli_evaluate  # noqa: E402

if __name__ == "__main__":
    cli_evaluate()
