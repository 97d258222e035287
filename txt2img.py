"""Draw pictures for a prompt: python txt2img.py --prompt "a red circle to the left of a blue square" """

import sys

from dpt.cli.txt2img.main import main

if __name__ == "__main__":
    sys.exit(main())
