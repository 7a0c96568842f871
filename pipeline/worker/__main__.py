"""`python -m pipeline.worker`: see main.py."""

import os
import sys

from pipeline.worker.threads import share_cores

share_cores()

from pipeline.worker.main import main  # noqa: E402  (the libraries it loads read the environment once)

if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # An orderly end would tear down what a thread may be computing with, a prompt's for example, and abort.
    os._exit(status)
