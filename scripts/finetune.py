"""Run the command line from a checkout: `python scripts/finetune.py --data ./imgs`. Installed, it is `finetune`."""

import sys
from pathlib import Path

# Python puts this script's folder first on the path, where this file would hide the package of the same name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

if __name__ == "__main__":
    from finetune.cli import main

    main()
