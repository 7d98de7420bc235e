"""Letter drills: find the letter of a word among four options, eight times in one reply, no looking needed.

One answer letter a question is a thin signal: 1400 steps of it left the small model at chance (docs/training.md).
A drill asks for letters densely, and of random words, so that matching is all there is to learn.
"""

from random import Random

from tokenizers import Tokenizer

from ..bench.needle.item import LETTERS
from ..bench.needle.palette import COLOURS, SHAPES
from .prompt import Kind, asked, question_text
from .row import IGNORED, Row, token_id

RECALLS = 8
NEEDLE_WORDS = (*COLOURS, *SHAPES, *(str(digit) for digit in range(10)))


def drill_row(tokenizer: Tokenizer, random: Random, kind: Kind) -> Row:
    """Ids, labels are the letters alone; slot and colon mean nothing here."""
    words = _words(tokenizer, random)
    ids = tokenizer.encode(asked(question_text("Recall.", words, kind))).ids
    start = len(ids)
    labels = [IGNORED] * start
    for _ in range(RECALLS):
        number = random.randrange(4)
        said = tokenizer.encode(f" {words[number]}:").ids  # with its space, so that its token is the option's own
        letter = tokenizer.encode(f" {LETTERS[number]}\n").ids
        ids += said + letter
        labels += [IGNORED] * len(said) + letter[:1] + [IGNORED] * (len(letter) - 1)
    return Row(ids, labels, start, start)


def _words(tokenizer: Tokenizer, random: Random) -> list[str]:
    """Four different words, of the needle task or any of the vocabulary."""
    if random.random() < 0.5:
        pool = random.choice((tuple(COLOURS), tuple(SHAPES), NEEDLE_WORDS[-10:], NEEDLE_WORDS))
        return random.sample(pool, 4)
    words: list[str] = []
    while len(words) < 4:
        word = tokenizer.decode([random.randrange(300, token_id(tokenizer, "<|endoftext|>"))]).strip()
        if word.isalpha() and word.isascii() and word not in words:
            words.append(word)
    return words
