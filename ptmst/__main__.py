import sys

from ptmst.cli import main

sys.exit(main())
