"""`python -m pipeline.worker`: see main.py."""

import sys

from pipeline.worker.threads import share_cores

share_cores()

from pipeline.worker.main import main  # noqa: E402  (the libraries it loads read the environment once)

if __name__ == "__main__":
    sys.exit(main())
