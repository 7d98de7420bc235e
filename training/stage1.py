"""Stage 1: images. Crops, encoded again, stand in the <VR> slots, and hidden states are pulled to them.

python -m reflectrt.training.stage1 --from STAGE0 --out FOLDER [--latent 1 --rollout 4]
"""

from .finetune import STAGE_1, run_stage
from .losses import Reflecting

if __name__ == "__main__":
    run_stage(__doc__, STAGE_1, Reflecting(align=0.1, teacher=1.0, latent=0.0), 5e-4)
