"""Tokenize the fixed parts of the prompt once, at export, so that the runtime only tokenizes the question.

Special tokens split text for Qwen's tokenizer, so the parts between them tokenize alone as they do in the whole.
"""

from __future__ import annotations

import string

from tokenizers import Tokenizer

from ..runtime.errors import ExportError
from ..runtime.manifest import PromptTokens
from .facts import TokenFacts

SYSTEM = "You are a helpful assistant."  # Qwen2.5-VL's chat template
ANSWER_PREFIX = "The answer is:"  # the answer that VisReflect is trained on


def prompt_tokens(tokens: TokenFacts, tokenizer: Tokenizer) -> PromptTokens:
    """The prompt's fixed token sequences; ExportError where the tokenizer cannot make them."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    prefix = ids(ANSWER_PREFIX)
    return PromptTokens(
        opening=ids(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"),
        visual_open=(tokens.vision_start,),
        visual_close=(tokens.vision_end,),
        closing=ids("<|im_end|>\n<|im_start|>assistant\n"),
        answer_prefix=prefix,
        letters=tuple(_letter(ids(f"{ANSWER_PREFIX} {letter}"), prefix, letter) for letter in string.ascii_uppercase),
        image_pad=tokens.image_pad,
        video_pad=tokens.video_pad,
        stop=tokens.stop,
    )


def _letter(whole: tuple[int, ...], prefix: tuple[int, ...], letter: str) -> int:
    """The token of a letter as it follows the prefix."""
    if whole[: len(prefix)] != prefix or len(whole) == len(prefix):
        raise ExportError(
            f'the tokenizer joins "{ANSWER_PREFIX}" and " {letter}" into one token; multiple choice cannot be scored'
        )
    return whole[len(prefix)]
