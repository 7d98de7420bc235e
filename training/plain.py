"""The plain baseline: from the same stage 0, over the same scenes and steps, without reflection blocks.

python -m reflectrt.training.plain --from STAGE0 --out FOLDER --mixture 1
python -m reflectrt.training.plain --from FOLDER --out FOLDER2 --mixture 2
"""

import sys

from .finetune import STAGE_1, STAGE_2, run

if __name__ == "__main__":
    place = sys.argv.index("--mixture")
    stage = int(sys.argv[place + 1])
    del sys.argv[place : place + 2]
    run(__doc__ or "", STAGE_1 if stage == 1 else STAGE_2, None, 5e-4 if stage == 1 else 3e-4)
