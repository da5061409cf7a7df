"""`python -m vitexplain`: the command."""

import sys

from vitexplain.cli.main import main

sys.exit(main())
