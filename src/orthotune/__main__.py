"""``python -m orthotune`` is the command line."""

import sys

from orthotune.cli import main

sys.exit(main())
