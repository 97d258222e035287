"""Stage 1, probing: accelerate launch train_stage1.py --pretrained_model_name_or_path ckpt/pocket"""

import sys

from dpt.cli.train.stages import main_stage1

if __name__ == "__main__":
    sys.exit(main_stage1())
