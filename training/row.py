"""One question as a branch: token ids, what is learnt of them, and where the interesting places are."""

from dataclasses import dataclass

from tokenizers import Tokenizer

IGNORED = -100  # the label of tokens that nothing is learnt from; torch's cross-entropy skips it


@dataclass(frozen=True)
class Row:
    """A branch's ids and labels, index of its first <VR> slot and of the token before the answer, the answer's word."""

    ids: list[int]
    labels: list[int]
    slot: int
    colon: int
    word: int  # its last token, IGNORED in a drill


def token_id(tokenizer: Tokenizer, name: str) -> int:
    """A token's id; every token asked for is one that training itself put there."""
    number = tokenizer.token_to_id(name)
    if number is None:
        raise ValueError(f"the tokenizer has no token {name!r}: use a tokenizer.json written by stage 0")
    return number
