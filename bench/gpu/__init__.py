"""`python -m bench.gpu`: everything to check and measure on a CUDA device. Start reading at parts.py."""

import time

BEGAN = time.time()
"""When this process began, before large imports."""
