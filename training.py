"""`python -m training.train` of version 0.1, kept for one more release: it says the new name."""

import sys
from pathlib import Path

import vitexplain.training

__path__ = [str(Path(vitexplain.training.__file__).parent)]  # so training.train is found there
_asked = next((word for word in sys.orig_argv if word.startswith("training.")), "training")
print(f"{_asked} is now vitexplain.{_asked}", file=sys.stderr)
