"""What each stage minimises. Every loss returns its sum and the parts for the log."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .dense import PlaceHeads
from .network import Network, Prefilled, put, take
from .row import IGNORED
from .scenes import PLACE, Batch

Parts = dict[str, Tensor]
WORD_WEIGHT = 0.3


@dataclass(frozen=True)
class Reflecting:
    """VisReflect's loss. The paper: align 0.1; teacher 1, latent 0 for images, teacher 0, latent 1 for video.

    rollout: passes that make the latent states. 1 is the paper's: all slots at once from the pass with crops in
    the slots. As many passes as there are slots make them one by one, exactly as inference does.
    """

    align: float = 0.1
    teacher: float = 1.0
    latent: float = 0.0
    rollout: int = 1


def see_and_answer(network: Network, heads: Any, batch: Batch, dense_weight: float) -> tuple[Tensor, Parts]:
    """Stage 0: cross-entropy of the answer, and what every visual token shows. Trains everything."""
    visual = network.see(batch.pixels)
    hidden = network.branches(network.embed(batch.ids), network.prefill(batch, visual))
    answer = network.token_loss(hidden, batch.labels)
    dense = heads(visual, batch.dense.flatten(1, 3))
    return answer + dense_weight * dense, {"ce": answer.detach(), "dense": dense.detach()}


def answer_only(network: Network, batch: Batch) -> tuple[Tensor, Parts]:
    """The plain baseline: vision frozen as in stages 1 and 2, no reflection block, cross-entropy alone."""
    with torch.no_grad():
        visual = network.see(batch.pixels)
    hidden = network.branches(network.embed(batch.ids), network.prefill(batch, visual))
    answer = network.token_loss(hidden, batch.labels)
    return answer, {"ce": answer.detach(), "right": network.letters_right(hidden, batch)}


def words_and_letters(network: Network, words: Any, batch: Batch) -> tuple[Tensor, Parts]:
    """Stage 0's second part: cross-entropy of the answer, and its word's at a lower layer, where its letter is sought.

    `words` reads a hidden state [..., D] as vocabulary logits and is thrown away afterwards.
    """
    with torch.no_grad():
        visual = network.see(batch.pixels)
    hidden, middle = network.branches_twice(network.embed(batch.ids), network.prefill(batch, visual))
    answer = network.token_loss(hidden, batch.labels)
    read = words(take(middle, batch.colon, 1)[:, :, 0]).flatten(0, 1).float()
    word = F.cross_entropy(read, batch.word.flatten(), ignore_index=IGNORED)
    parts = {"ce": answer.detach(), "word": word.detach(), "right": network.letters_right(hidden, batch)}
    return answer + WORD_WEIGHT * word, parts


def reflecting(network: Network, batch: Batch, how: Reflecting) -> tuple[Tensor, Parts]:
    """Stages 1 and 2: pull hidden states to the crop's embeddings, and answer from crops or from hidden states."""
    with torch.no_grad():
        visual = network.see(batch.pixels)
        target = network.see(batch.crops).view(*batch.ids.shape[:2], -1, visual.shape[-1])
    prefix = network.prefill(batch, visual)
    embeds = network.embed(batch.ids)
    hidden = network.branches(put(embeds, batch.slots, target), prefix)
    align = _distance(hidden, batch.slots, target)
    parts = {"align": align.detach()}
    total = how.align * align
    if how.teacher:
        taught = network.token_loss(hidden, batch.labels)
        total, parts["ce"] = total + how.teacher * taught, taught.detach()
    if how.latent:
        states = _latent_states(network, batch, prefix, embeds, hidden, target.shape[2], how.rollout)
        hidden = network.branches(put(embeds, batch.slots, states), prefix)
        latent = network.token_loss(hidden, batch.labels)
        total, parts["latent"] = total + how.latent * latent, latent.detach()
        parts["right"] = network.letters_right(hidden, batch)
        if how.rollout > 1:  # on its own path too, the states must stay near the crop
            own = _distance(hidden, batch.slots, target)
            total, parts["own"] = total + how.align * own, own.detach()
    return total, parts


def zooming(network: Network, places: PlaceHeads, batch: Batch) -> tuple[Tensor, Parts]:
    """The rival: cross-entropy of the place's text, or of the answer behind the crop, whichever the batch is of.

    `places` asks every visual token where it lies and is thrown away afterwards.
    """
    with torch.no_grad():
        visual = network.see(batch.pixels)
    embeds, prefix = network.embed(batch.ids), network.prefill(batch, visual)
    where = places(prefix.middle[:, -visual.shape[1] :], network.grid(batch))
    if batch.turn == PLACE:
        hidden = network.branches(embeds, prefix)
        loss = network.token_loss(hidden, batch.labels)
        parts = {"place": loss.detach(), "digits right": network.tokens_right(hidden, batch), "where": where.detach()}
        return loss + where, parts
    with torch.no_grad():
        crops = network.see(batch.crops)
        crops = crops.view(*batch.ids.shape[:2], -1, crops.shape[-1])
    hidden = network.branches(put(embeds, batch.slots, crops), prefix)
    loss = network.token_loss(hidden, batch.labels)
    return loss + where, {"ce": loss.detach(), "right": network.letters_right(hidden, batch)}


def _distance(hidden: Tensor, slots: Tensor, target: Tensor) -> Tensor:
    """1 - mean cosine between the states just before the slots and the slots' own crop embeddings [B, Q, N, D]."""
    states = take(hidden, slots - 1, target.shape[2])
    return 1 - F.cosine_similarity(states.float(), target.float(), dim=-1).mean()


@torch.no_grad()
def _latent_states(
    network: Network, batch: Batch, prefix: Prefilled, embeds: Tensor, hidden: Tensor, count: int, rollout: int
) -> Tensor:
    """Detached hidden states [B, Q, count, D] for the slots; those behind the roll-out are the one-pass ones."""
    states = take(hidden, batch.slots - 1, count).detach()
    if rollout == 1:
        return states
    rolled = min(rollout, count)
    filled = network.reflect(put(embeds.detach(), batch.slots, states), batch.slots, prefix, rolled)
    return take(filled, batch.slots, count)
