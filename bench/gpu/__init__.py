"""`python -m bench.gpu`: what a CUDA device can show. Begin with parts.py."""

import time

BEGAN = time.time()
"""When this process began: before anything large was imported."""
