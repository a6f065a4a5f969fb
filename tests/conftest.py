"""One thread: the tests' networks are small, and two test runs side by side would fight for the cores."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; the runs that the tests start inherit it
