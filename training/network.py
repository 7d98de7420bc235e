"""One model on one device: encode scenes, prefill them, run branches, reflect."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from ..bench.needle.item import LETTERS
from . import decoder, vision
from .dense import CELL
from .prompt import IMAGE, PREFIX
from .row import IGNORED, token_id
from .scenes import ZOOMED, Batch

TOKENS_PER_SECOND = 2  # positions a temporal grid row, second_per_grid being 1.0 as the authors leave it
SCENE_PIXELS = 64 * 2**20  # frames are encoded this many px at a time where no gradient is kept


@dataclass(frozen=True)
class Prefilled:
    """A batch after its prefix: what branches need."""

    cache: decoder.KeysValues
    table: decoder.Rotary
    mask: Tensor
    middle: Tensor
    """States [B, T, D] of the prefix halfway up."""


@dataclass(frozen=True)
class Network:
    """A Qwen2.5-VL model (any size) with its tokenizer."""

    model: Any
    tokenizer: Tokenizer

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(self.model.device)

    def see(self, pixels: Tensor) -> Tensor:
        """Merged embeddings [B, tokens, D] of uint8 [B, F, H, W, 3]."""
        visual, frames = self.model.model.visual, min(pixels.shape[1], 2)
        layout = vision.windows(visual, pixels.shape[2], pixels.shape[3], self.device)
        merged = vision.encode(visual, pixels.reshape(-1, frames, *pixels.shape[2:]), layout)
        return merged.reshape(pixels.shape[0], -1, merged.shape[-1])

    @staticmethod
    def grid(batch: Batch) -> tuple[int, int, int]:
        """Temporal grid rows, rows and columns of a batch's visual tokens."""
        _, frames, height, width, _ = batch.pixels.shape
        return -(-frames // 2), height // CELL, width // CELL

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings, in the type that autocast computes in."""
        embedded: Tensor = self.model.model.language_model.embed_tokens(ids)
        return embedded.to(torch.get_autocast_dtype("cuda")) if torch.is_autocast_enabled("cuda") else embedded

    def prefill(self, batch: Batch, visual: Tensor) -> Prefilled:
        """Run system text and visual tokens [B, N, D]."""
        language = self.model.model.language_model
        lead = torch.tensor(self.tokenizer.encode(PREFIX).ids, device=self.device)
        text = self.embed(lead).expand(len(visual), -1, -1)
        step = 0 if batch.kind == IMAGE else TOKENS_PER_SECOND
        prefix, branch = decoder.positions(len(lead), self.grid(batch), batch.ids.shape[2], step)
        if batch.turn == ZOOMED:
            height, width = batch.crops.shape[2:4]
            branch = decoder.after_crop(branch, int(batch.slots[0, 0]), height // CELL, width // CELL)
        embeds = torch.cat([text, visual.to(text.dtype)], 1)
        cache, middle = decoder.prefill(language, embeds, decoder.rotary(language, prefix))
        mask = decoder.branch_mask(prefix.shape[1], batch.ids.shape[1], batch.ids.shape[2], self.device)
        return Prefilled(cache, decoder.rotary(language, branch), mask, middle)

    def branches(self, embeds: Tensor, prefix: Prefilled) -> Tensor:
        """Hidden states after the final norm, [B, Q, T, D], of branch embeddings of that shape."""
        return self.branches_twice(embeds, prefix)[0]

    def branches_twice(self, embeds: Tensor, prefix: Prefilled) -> tuple[Tensor, Tensor]:
        """`branches`, and the hidden states after 5 layers in 8."""
        language = self.model.model.language_model
        return decoder.run_branches(language, embeds, prefix.cache, prefix.table, prefix.mask)

    def token_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the next token where labels [B, Q, T] are given."""
        wanted = labels[..., 1:].flatten()
        kept = (wanted != IGNORED).nonzero()[:, 0]
        logits = self.model.lm_head(hidden[..., :-1, :].flatten(0, -2)[kept])
        return F.cross_entropy(logits.float(), wanted[kept])

    @property
    def letters(self) -> Tensor:
        """Ids of the four option letters as they follow "The answer is:"."""
        return torch.tensor([token_id(self.tokenizer, f"Ġ{letter}") for letter in LETTERS], device=self.device)

    def letter_scores(self, hidden: Tensor, colon: Tensor) -> Tensor:
        """Logits [B, Q, 4] of the letters after the answer prefix, whose last token is at `colon` [B, Q]."""
        scores: Tensor = self.model.lm_head(take(hidden, colon, 1)[:, :, 0])[..., self.letters]
        return scores

    @torch.no_grad()
    def letters_right(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Share of the questions wanting a letter whose letter scores highest."""
        wanted = batch.labels.gather(2, batch.colon[..., None] + 1)[..., 0]
        asked = torch.isin(wanted, self.letters)
        hits = self.letter_scores(hidden, batch.colon).argmax(-1) == batch.answer
        return hits[asked].float().mean()

    @torch.no_grad()
    def tokens_right(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Share of the labelled tokens that are the likeliest."""
        wanted = batch.labels[..., 1:].flatten()
        kept = (wanted != IGNORED).nonzero()[:, 0]
        found = self.model.lm_head(hidden[..., :-1, :].flatten(0, -2)[kept]).argmax(-1)
        share: Tensor = (found == wanted[kept]).float().mean()
        return share

    def reflect(self, embeds: Tensor, slots: Tensor, prefix: Prefilled, steps: int) -> Tensor:
        """Fill `steps` slots, first to last, each with the hidden state just before it, as at inference."""
        for step in range(steps):
            hidden = self.branches(embeds, prefix)
            embeds = put(embeds, slots + step, take(hidden, slots + step - 1, 1))
        return embeds


def take(hidden: Tensor, start: Tensor, count: int) -> Tensor:
    """`count` rows of [B, Q, T, D] from `start` [B, Q] on: [B, Q, count, D]."""
    index = start[..., None] + torch.arange(count, device=start.device)
    return hidden.gather(2, index[..., None].expand(-1, -1, -1, hidden.shape[-1]))


def put(embeds: Tensor, start: Tensor, rows: Tensor) -> Tensor:
    """A copy of [B, Q, T, D] with `rows` [B, Q, count, D] written from `start` [B, Q] on."""
    index = start[..., None] + torch.arange(rows.shape[2], device=start.device)
    return embeds.scatter(2, index[..., None].expand(-1, -1, -1, embeds.shape[-1]), rows.to(embeds.dtype))
