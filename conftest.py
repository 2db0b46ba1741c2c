"""For this project's own tests only. The gate's options come from its entry point, never from here: see certify/plugin.py."""

import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the network
settings.register_profile("mergegate", derandomize=True, deadline=None, database=None)  # same run, same cases, on any machine
settings.load_profile("mergegate")
