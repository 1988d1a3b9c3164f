"""Made-up reports, which tests of the judgment use too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "audits"))
