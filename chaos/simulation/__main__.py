"""``python -m regrow.chaos.simulation``: see ``runner``."""

import sys

from regrow.chaos.simulation.runner import main

sys.exit(main())
