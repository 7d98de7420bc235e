"""The rival, zooming: from the same stage 0, as many px a step, half of them to name places, half to answer from crops.

python -m reflectrt.training.zooming --from STAGE0 --out FOLDER --mixture 1
python -m reflectrt.training.zooming --from FOLDER --out FOLDER2 --mixture 2 --rate 3e-4
"""

from .dense import PlaceHeads
from .finetune import run_rival, zooming_with
from .model import SmallModel

if __name__ == "__main__":
    run_rival(__doc__, zooming_with(PlaceHeads(SmallModel().hidden)))
