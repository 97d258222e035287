"""What every test needs: one thread, no network, tiny models on disk."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("DPT_CACHE_DIR", tempfile.mkdtemp(prefix="dpt-cache-"))
