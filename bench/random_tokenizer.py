"""A small real tokenizer of Qwen2.5-VL's kind, trained on a paragraph, for random checkpoints."""

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

REFLECTION_TOKENS = ("<BOR>", "<VR>", "<EOR>")
CHAT_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
"""The special tokens of Qwen2.5-VL's tokenizer in its order, from its `added_tokens`."""

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2.5's tokenizer.json cuts text into words before merging bytes."""

PARAGRAPH = """system You are a helpful assistant. user assistant
A rider on a blue bike passes the second car while the light is still red. Which colour is the car behind
the bus? How many people cross the street before the tram arrives? The sign reads open.
Options: Output the letter of the correct answer only.
Answer with the option's letter from the given choices directly.
What happens after the man puts down the cup? He opens the window, looks at the rain and closes it.
Yes. No.
"""


@cache
def _tokenizer_text(with_reflection: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    letters = [f"The answer is: {chr(65 + i)}\n{chr(65 + i)}. " * 3 for i in range(26)]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([PARAGRAPH, *letters], trainer)
    tokenizer.add_special_tokens(list(CHAT_TOKENS))
    if with_reflection:
        tokenizer.add_special_tokens(list(REFLECTION_TOKENS))
    return tokenizer.to_str()


def make_tokenizer(with_reflection: bool) -> Tokenizer:
    """A byte-level BPE of about 500 tokens cut as Qwen's, with its special tokens in its spelling.

    Like Qwen's it has " A" to " Z" as single tokens, which multiple choice compares.
    """
    return Tokenizer.from_str(_tokenizer_text(with_reflection))
