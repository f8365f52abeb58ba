"""Fixtures that several test modules share."""

from __future__ import annotations

import os

# Read when the libraries are first imported: no hub, no bars, two cores as everywhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
