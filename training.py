"""`python -m training.train` of version 0.1, kept for one more release: it says the new name."""

import sys
from pathlib import Path

import vitexplain.training

__path__ = [str(Path(vitexplain.training.__file__).parent)]  # so training.train is found there

# only where it is the command: a process that reads images imports this, too, and says nothing
for _word in sys.orig_argv:
    _name = _word.removeprefix("-m")
    if _name in ("training.train", "training.evaluate", "training.compare"):
        print(f"{_name} is now vitexplain.{_name}", file=sys.stderr)
        break
