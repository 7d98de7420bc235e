"""Prompts as VisReflect words them, cut in two at the visual segment's end.

    prefix: <|im_start|>system ... <|im_start|>user\n<|vision_start|>  + visual embeddings
    branch: <|vision_end|> question <|im_end|>\n<|im_start|>assistant\n [<BOR><VR>*N<EOR>]The answer is: X<|im_end|>

Everything up to the branch does not depend on the question, so one prefix serves many branches.
"""

from collections.abc import Sequence
from typing import Literal

Kind = Literal["image", "video"]
IMAGE: Kind = "image"
VIDEO: Kind = "video"

SYSTEM = "You are a helpful assistant."
PREFIX = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
ANSWER = "The answer is:"
INSTRUCTIONS = {
    IMAGE: "Output the letter of the correct answer only.",
    VIDEO: "Answer with the option's letter from the given choices directly.",
}


def question_text(question: str, options: Sequence[str], kind: Kind) -> str:
    """The user's text; without options the bare question."""
    if not options:
        return question
    return lettered(question, list(zip("ABCDEFGHIJ", options, strict=False)), kind)


def lettered(question: str, options: Sequence[tuple[str, str]], kind: Kind) -> str:
    """The user's text with (letter, option) lines."""
    lines = "\n".join(f"{letter}. {option}" for letter, option in options)
    middle = "\nOptions:\n" if kind == IMAGE else "\n"
    return f"{question}{middle}{lines}\n{INSTRUCTIONS[kind]}"


def answer_text(answer: str) -> str:
    """What the assistant says, a letter or words."""
    return f"{ANSWER} {answer}"


def asked(text: str) -> str:
    """A branch up to where the assistant begins."""
    return f"<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"


def replied(answer: str, reflection: int) -> str:
    """The assistant's turn with a block of `reflection` latent steps (0: none)."""
    block = f"<BOR>{'<VR>' * reflection}<EOR>" if reflection else ""
    return f"{block}{answer_text(answer)}<|im_end|>"
