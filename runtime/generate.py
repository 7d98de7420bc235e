"""Single-pass decoding with latent reflection: prefill, reflect K times, answer.

    text ... <BOR>  |  <VR> x K: the hidden state goes back in  |  <EOR> answer

In a reflection step no token is chosen: the decoder's hidden state after the final norm is its next input embedding.
Source: VisReflect, arXiv 2606.30288. What is forced goes in together, in one run; only reflection and free text are
sequential.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .clock import Clock
from .engine import Array, Buffer
from .errors import NumericError
from .manifest import PromptTokens, Reflection
from .sampling import Sampler
from .stream import Stream


@dataclass(frozen=True)
class Plan:
    """How one question is answered: the checkpoint's reflection (None without), its steps, where it may start.

    `steps` 0 is the baseline: the reflection tokens never come. `forced` opens a window before the first token.
    """

    reflection: Reflection | None
    steps: int
    forced: bool
    max_new_tokens: int

    @property
    def reflects(self) -> bool:
        """Whether a window may open at all."""
        return self.reflection is not None and self.steps > 0


@dataclass(frozen=True)
class Choice:
    """A multiple-choice answer: index of the option, a probability for each, tokens from `<BOR>` on."""

    option: int
    scores: Array
    tokens: tuple[int, ...]
    reflection: tuple[Array, ...]
    """The hidden state [D] after each reflection step."""


@dataclass(frozen=True)
class Token:
    """One token of the answer; `hidden` is the state [D] after a reflection step, where the token is one."""

    id: int
    hidden: Array | None = None


def answer_choice(stream: Stream, question: Sequence[int], options: int, plan: Plan, clock: Clock) -> Choice:
    """Answer a multiple-choice question in K + 2 decoder runs: `<BOR>` and the answer's prefix are forced."""
    prompt: PromptTokens = stream.manifest.prompt
    opened, window, closed = _window(plan)
    with clock.stage("prefill", stream.engine.wait):
        hidden = stream.feed_tokens([*question, *opened])
    with clock.stage("reflect", stream.engine.wait):
        thoughts = list(reflect(stream, hidden, len(window)))
    with clock.stage("decode"):
        hidden = stream.feed_tokens([*closed, *prompt.answer_prefix])
        states = [_finite(stream.engine.download(thought).reshape(-1), "reflection") for thought in thoughts]
        letters = prompt.letters[:options]
        logits = _finite(stream.logits(hidden), "head")[list(letters)]
    option = int(np.argmax(logits))
    tokens = (*opened, *window, *closed, *prompt.answer_prefix, letters[option])
    return Choice(option, _softmax(logits), tokens, tuple(states))


def answer_freely(
    stream: Stream, question: Sequence[int], plan: Plan, sampler: Sampler, clock: Clock
) -> Iterator[Token]:
    """Answer in free text, token by token; windows open where `<BOR>` comes.

    Ends with a stop token or after `max_new_tokens` chosen ones (what a window forces is not counted).
    """
    opened = _window(plan)[0] if plan.forced else ()
    with clock.stage("prefill", stream.engine.wait):
        hidden = stream.feed_tokens([*question, *opened])
    yield from map(Token, opened)
    if opened:
        hidden = yield from _reflection_window(stream, hidden, plan, clock)
    for left in reversed(range(plan.max_new_tokens)):
        with clock.stage("decode"):
            token = sampler.pick(_allowed(_finite(stream.logits(hidden), "head"), plan))
        yield Token(token)
        if token in stream.manifest.prompt.stop or not left:
            return
        hidden = decode_once(stream, token, clock)
        if (token,) == _window(plan)[0]:
            hidden = yield from _reflection_window(stream, hidden, plan, clock)


def reflect(stream: Stream, hidden: Buffer, steps: int) -> Iterator[Buffer]:
    """The hidden states [1, 1, D] after each of `steps` reflection steps, starting from the state after `<BOR>`."""
    for _ in range(steps):
        hidden = reflect_once(stream, hidden)
        yield hidden


def reflect_once(stream: Stream, hidden: Buffer) -> Buffer:
    """One reflection step: the hidden state is the next input embedding."""
    return stream.feed_hidden(hidden)


def decode_once(stream: Stream, token: int, clock: Clock) -> Buffer:
    """One ordinary step: the token's embedding is the next input embedding."""
    with clock.stage("decode", stream.engine.wait):
        return stream.feed_tokens([token])


def _reflection_window(stream: Stream, hidden: Buffer, plan: Plan, clock: Clock) -> Generator[Token, None, Buffer]:
    """From the state after `<BOR>` through K steps and `<EOR>`; yields the tokens, returns the state after `<EOR>`."""
    _, window, closed = _window(plan)
    for token in window:
        with clock.stage("reflect"):
            hidden = reflect_once(stream, hidden)
            state = _finite(stream.engine.download(hidden).reshape(-1), "reflection")
        yield Token(token, state)
    yield from map(Token, closed)
    return decode_once(stream, closed[0], clock)


def _window(plan: Plan) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """`<BOR>`, `<VR>` x K, `<EOR>` as three sequences; all empty where nothing reflects."""
    if not plan.reflects or plan.reflection is None:
        return (), (), ()
    reflection = plan.reflection
    return (reflection.begin,), (reflection.step,) * plan.steps, (reflection.end,)


def _allowed(logits: Array, plan: Plan) -> Array:
    """Logits of what may be chosen: all tokens, but for the baseline none of the three of reflection."""
    if plan.reflection is None or plan.steps > 0:
        return logits
    logits = logits.copy()
    logits[[plan.reflection.begin, plan.reflection.step, plan.reflection.end]] = -np.inf
    return logits


def _finite(values: Array, stage: str) -> Array:
    if not np.isfinite(values).all():
        raise NumericError(f"{stage} gave NaN or infinity; export the bundle in a wider precision (fp32)")
    return values


def _softmax(logits: Array) -> Array:
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()  # type: ignore[no-any-return]  # numpy's division is Any
