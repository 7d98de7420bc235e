"""The plain baseline: from the same stage 0, over the same scenes and steps, without reflection blocks.

python -m reflectrt.training.plain --from STAGE0 --out FOLDER --mixture 1
python -m reflectrt.training.plain --from FOLDER --out FOLDER2 --mixture 2 --rate 3e-4
"""

from .finetune import PLAIN, run_rival

if __name__ == "__main__":
    run_rival(__doc__, PLAIN)
