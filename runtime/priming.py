"""Prefix priming: send one request of a shared prefix first, and the others when it is prefilled.

Engines such as OpenVINO GenAI reuse only prefixes that an earlier step has finished, so requests
that arrive together and share a long prefix would each compute it. Of such a group, the first that
gets a slot becomes the owner of the prefix; the others are held, without a slot, until the owner's
prompt is in the KV cache, or its call ended in whatever way. A prefix has an owner only while that
call is inside the engine, so nothing can wait for a call that waits.

Prompts are compared in blocks of `BLOCK_CHARS` characters of the rendered conversation: no
tokenizer is needed, and a block is about as large as the engine's own (32 tokens).
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.prefix_cache import PrefixCache, block_chain
from costmodel.tokens import BYTES_PER_TOKEN
from runtime.backends.base import Request

BLOCK_CHARS = 128
WORTH_CHARS = 256
"""A group is worth priming when it shares this many characters that the engine does not have yet.
"""

REMEMBERED_TOKENS = 131_072
"""Prompt tokens that the engine is taken to keep. Too few costs a short hold, too many a prefill
that is computed more than once."""


@dataclass(slots=True)
class PrimingStats:
    """What priming did.

    Attributes:
        groups: calls that others were held for.
        held: calls that were held at least once.
        predicted_shared_tokens: prompt tokens expected to have been reused, over all calls.
    """

    groups: int = 0
    held: int = 0
    predicted_shared_tokens: int = 0


@dataclass(slots=True, eq=False)
class Prefill:
    """A prompt inside the engine. `reused_chars` is what the engine should find in its cache."""

    chain: list[int]
    n_chars: int
    reused_chars: int
    open: bool = True


class Priming:
    """What one engine has, or is about to have, in its prefix cache.

    `concurrent_reuse` is for engines that share a prefix between requests that arrive together:
    then nothing is ever pending, and the object only predicts reuse.
    """

    def __init__(
        self,
        *,
        concurrent_reuse: bool,
        remembered_tokens: int = REMEMBERED_TOKENS,
        worth_chars: int = WORTH_CHARS,
    ) -> None:
        self.stats = PrimingStats()
        self._concurrent_reuse = concurrent_reuse
        self._cached = PrefixCache(remembered_tokens, BLOCK_CHARS // BYTES_PER_TOKEN)
        self._pending: dict[int, Prefill] = {}
        self._worth_blocks = max(1, worth_chars // BLOCK_CHARS)

    def blocker(self, chain: list[int]) -> Prefill | None:
        """The prefill that a prompt should wait for, or None when it may go now."""
        if not self._pending:
            return None
        pending = self._pending
        cached = shared = self._cached.peek(chain)
        while shared < len(chain) and chain[shared] in pending:
            shared += 1
        return pending[chain[shared - 1]] if shared - cached >= self._worth_blocks else None

    def start(self, chain: list[int], n_chars: int) -> Prefill:
        """A prompt goes to the engine: its blocks that are not cached are pending from here on."""
        hits = self._cached.match(chain)
        prefill = Prefill(chain, n_chars, hits * BLOCK_CHARS)
        if self._concurrent_reuse:
            self._cached.insert(chain)
            prefill.open = False
        else:
            for block in chain[hits:]:
                self._pending.setdefault(block, prefill)
        return prefill

    def may_hold(self, prefill: Prefill) -> bool:
        """Whether a prompt has enough that is not cached yet for others to wait for it."""
        cached = prefill.reused_chars // BLOCK_CHARS
        return len(prefill.chain) - cached >= self._worth_blocks

    def end(self, prefill: Prefill, *, cached: bool) -> bool:
        """The prompt is in the engine's cache (`cached`), or will not be. False when it had ended
        before."""
        if not prefill.open:
            return False
        prefill.open = False
        for block in prefill.chain:
            if self._pending.get(block) is prefill:
                del self._pending[block]
        if cached:
            self._cached.insert(prefill.chain)
        return True

    def predict(self, prefill: Prefill, input_tokens: int) -> int:
        """Tokens of a finished call's prompt that the engine should have reused."""
        tokens = min(
            input_tokens * prefill.reused_chars // max(1, prefill.n_chars), input_tokens - 1
        )
        self.stats.predicted_shared_tokens += max(0, tokens)
        return max(0, tokens)


def prompt_text(request: Request) -> str:
    """The conversation in the order in which chat templates put it: tools, then the turns. It is
    read for what requests share, never sent."""
    parts = [f"{t.name}\n{t.description}\n{t.parameters_json}\n" for t in request.tools]
    for message in request.messages:
        parts.append(f"<{message.role}>\n")
        parts.append(message.content)
        parts.extend(f"\n{c.name} {c.arguments_json}" for c in message.tool_calls)
        parts.append("\n")
    return "".join(parts)


def prompt_chain(text: str) -> list[int]:
    """The chained names of the full blocks of a prompt."""
    return block_chain(text, BLOCK_CHARS)
