"""Measurements for the tables in docs/; not installed."""

import vitexplain  # noqa: F401  before any module here imports timm
