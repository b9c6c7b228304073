"""`python -m tandem_devcluster`."""

import sys

from tandem_devcluster.cli import main

if __name__ == "__main__":
    sys.exit(main())
