"""A T4's memory and attention on a larger card: 14.56 GiB, and no flash attention. Its speed is another matter.

Python imports this module when it starts, if its folder is on PYTHONPATH; `tools/t4.py` puts it there.
"""

import os
from typing import Any

if os.environ.get("T4_LIKE") == "1":
    import torch

    if torch.cuda.is_available():
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
        whole, total = torch.cuda.mem_get_info, int(14.56 * 2**30)
        torch.cuda.set_per_process_memory_fraction(total / whole()[1])

        def mem_get_info(*args: Any, **named: Any) -> tuple[int, int]:
            """Return what is free of a T4's memory, and all of it."""
            free, size = whole(*args, **named)
            return max(0, total - (size - free)), total

        torch.cuda.mem_get_info = mem_get_info
