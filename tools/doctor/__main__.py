"""``python -m tools.doctor``."""

import sys

from tools.doctor.verb import main

sys.exit(main())
