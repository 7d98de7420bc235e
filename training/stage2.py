"""Stage 2: video. Clue frames in the <VR> slots; the answer is learnt in a pass over the model's own states.

python -m reflectrt.training.stage2 --from STAGE1 --out FOLDER --checkpoint FOLDER
"""

from .finetune import STAGE_2, run_stage
from .losses import Reflecting

if __name__ == "__main__":
    run_stage(__doc__, STAGE_2, Reflecting(align=0.1, teacher=0.0, latent=1.0), 3e-4)
