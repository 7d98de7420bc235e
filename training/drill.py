"""Letter drills: find the letters of words among lettered options, every option in one reply, no looking needed.

One answer letter a question is a thin signal: 1400 steps of it left the small model at chance (docs/training.md).
A drill asks for letters densely, and of random words, so that matching is all there is to learn. One option to begin
with: copying a letter must come first, since four options in equal parts tell attention nothing.
"""

from random import Random

from tokenizers import Tokenizer

from ..bench.needle.palette import COLOURS, SHAPES
from .prompt import Kind, asked, lettered
from .row import IGNORED, Row, token_id

MOST = 4  # options
LETTERS = "ABCDEFGHIJ"
NEEDLE_WORDS = (*COLOURS, *SHAPES, *(str(digit) for digit in range(10)))


def drill_row(tokenizer: Tokenizer, random: Random, kind: Kind) -> Row:
    """Ids; labels are the letters alone; slot and colon mean nothing here."""
    count = random.randint(1, MOST)
    words = _words(tokenizer, random)[:count]
    letters = LETTERS[:count] if random.random() < 0.5 else random.sample(LETTERS, count)
    ids = tokenizer.encode(asked(lettered("Recall.", list(zip(letters, words, strict=True)), kind))).ids
    start = len(ids)
    labels = [IGNORED] * start
    for number in random.sample(range(count), count):
        said = tokenizer.encode(f" {words[number]}:").ids  # with its space, so that its token is the option's own
        letter = tokenizer.encode(f" {letters[number]}\n").ids
        ids += said + letter
        labels += [IGNORED] * len(said) + letter[:1] + [IGNORED] * (len(letter) - 1)
    return Row(ids, labels, start, start, IGNORED)


def _words(tokenizer: Tokenizer, random: Random) -> list[str]:
    """MOST different words, of the needle task or any of the vocabulary."""
    if random.random() < 0.5:
        pool = random.choice((tuple(COLOURS), tuple(SHAPES), NEEDLE_WORDS[-10:], NEEDLE_WORDS))
        return random.sample(pool, MOST)
    words: list[str] = []
    while len(words) < MOST:
        word = tokenizer.decode([random.randrange(300, token_id(tokenizer, "<|endoftext|>"))]).strip()
        if word.isalpha() and word.isascii() and word not in words:
            words.append(word)
    return words
