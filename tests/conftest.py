"""One thread for torch in every test process: threads that wait awake make small arrays 20 times as slow on shared cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
