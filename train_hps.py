"""HPS, tuning on preferred pictures: accelerate launch train_hps.py --dataset_folder selected"""

import sys

from dpt.cli.prefer.tune import main

if __name__ == "__main__":
    sys.exit(main())
