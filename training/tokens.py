"""The small tokenizer: byte-level BPE cut as Qwen cuts text, with Qwen's special tokens and VisReflect's three."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ..bench.needle import images, videos
from .prompt import IMAGE, VIDEO, answer_text, question_text

# Qwen2's pre-tokenizer (tokenizer.json of Qwen2.5-VL): digits stand alone, a space belongs to the word after it.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
REFLECTION_TOKENS = ("<BOR>", "<VR>", "<EOR>")
VOCABULARY = 1024  # without the special tokens; the needle task itself needs about 150


def train_tokenizer(extra_text: Iterable[str] = ()) -> Tokenizer:
    """Train on needle questions and whatever English is given; special tokens get the highest ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*_needle_text(), *extra_text], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL_TOKENS + REFLECTION_TOKENS])
    return tokenizer


def english(folder: Path) -> Iterator[str]:
    """Paragraphs of the licence: some English, so that the vocabulary is not of the needle task alone."""
    yield from (folder / "LICENSE").read_text(encoding="utf-8").split("\n\n")


def _needle_text() -> Iterator[str]:
    for kind, items in ((IMAGE, images(0, 400, "train")), (VIDEO, videos(0, 400, "train"))):
        for item in items:
            yield question_text(item.question.text, item.question.options, kind)
            yield answer_text(item.question.label)
            yield answer_text(item.question.answer)
