"""`python -m training.train` of version 0.1, for one more release: the modules have moved."""

import sys
from pathlib import Path

import vitexplain.training

__path__ = [str(Path(vitexplain.training.__file__).parent)]
_name = sys.argv[0] if sys.argv[0] != "-m" else "training.…"
print("training is now vitexplain.training: python -m vitexplain.training.…", file=sys.stderr)
