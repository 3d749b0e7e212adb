"""Mutated files: each is refused in one line, or read as an independent reader reads it."""

import os

# OpenCV reads it once: its words on broken pictures are many.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
