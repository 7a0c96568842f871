"""`python -m pipeline.worker`: see main.py."""

import sys

from pipeline.worker.main import main

if __name__ == "__main__":
    sys.exit(main())
