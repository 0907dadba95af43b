"""``python -m bscompile`` is the command line."""

import sys

from bscompile.cli import main

sys.exit(main())
