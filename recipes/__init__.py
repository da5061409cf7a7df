"""How what is shipped was made; not installed."""

import vitexplain  # noqa: F401  before any module here imports timm
