"""Shares the kernels' cases with the unit tests, which compute them under triton's interpreter."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "engine"))
