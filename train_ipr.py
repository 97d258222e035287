"""Iterative prompt relabelling: accelerate launch train_ipr.py --recipe sdv2-lora"""

import sys

from dpt.cli.ipr.run import main

if __name__ == "__main__":
    sys.exit(main())
