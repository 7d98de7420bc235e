"""Text to token ids and back, over the bundle's `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as HfTokenizer

from .errors import BundleError


class Tokenizer:
    """The checkpoint's tokenizer."""

    def __init__(self, file: Path) -> None:
        try:
            self._tokenizer = HfTokenizer.from_file(str(file))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a malformed file can panic in Rust, which is no Exception
            raise BundleError(f"{file} cannot be read ({str(error)[:120]}); export the bundle again") from None
        # What a user types is text, even where it spells a special token: it cannot end the turn or open a reflection.
        self._tokenizer.encode_special_tokens = True

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    @property
    def size(self) -> int:
        """Number of tokens, the added ones included."""
        return int(self._tokenizer.get_vocab_size())


class TextStream:
    """Turns tokens into text as they come; half a character waits for its other half."""

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[str], None] | None) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._ids: list[int] = []
        self._shown = 0

    def add(self, token: int) -> None:
        """The next token."""
        self._ids.append(token)
        if self._on_text:
            text = self._tokenizer.decode(self._ids)
            if not text.endswith("�"):
                self._show(text)

    def finish(self) -> str:
        """Show what is left; the whole text."""
        text = self._tokenizer.decode(self._ids)
        self._show(text)
        return text.strip()

    def _show(self, text: str) -> None:
        if self._on_text and len(text) > self._shown:
            self._on_text(text[self._shown :])
            self._shown = len(text)
