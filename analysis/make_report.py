"""`python -m analysis.make_report`, see `analysis.report.build`."""

import sys

from analysis.report.build import main

if __name__ == "__main__":
    sys.exit(main())
