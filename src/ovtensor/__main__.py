"""``python -m ovtensor``."""

import sys

from ovtensor.cli import main

sys.exit(main())
