"""Stage 2, tuning: accelerate launch train_stage2.py --qformer_ckpt ckpt/pocket-stage1"""

import sys

from dpt.cli.train.stages import main_stage2

if __name__ == "__main__":
    sys.exit(main_stage2())
