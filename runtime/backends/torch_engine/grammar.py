"""What a JSON Schema or a regular expression allows next (llguidance)."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from runtime.backends.torch_engine.errors import RequestRefusedError
from runtime.backends.torch_engine.sequence import Flags


class GrammarCompiler:
    """Makes constraints for one tokenizer.

    Args:
        tokenizer_json: as the `tokenizers` library saves it.
        vocab_size: rows of the model's output, which may be more than the tokenizer has tokens.
        end_id: the token that ends an answer.
    """

    def __init__(self, tokenizer_json: str, vocab_size: int, end_id: int) -> None:
        from llguidance import LLTokenizer

        self._tokenizer = LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=end_id)

    def json_schema(self, schema_json: str) -> GrammarConstraint:
        """JSON of this schema, without white space between its parts."""
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(
                schema_json, overrides={"whitespace_flexible": False}
            )
        except ValueError as error:
            raise RequestRefusedError(f"the JSON Schema cannot be enforced: {error}") from error
        return self._constraint(grammar, "JSON Schema")

    def regex(self, pattern: str) -> GrammarConstraint:
        """Texts that match `pattern` as a whole."""
        from llguidance import LLMatcher

        return self._constraint(LLMatcher.grammar_from_regex(pattern), "regular expression")

    def _constraint(self, grammar: str, what: str) -> GrammarConstraint:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar)
        if matcher.is_error():
            raise RequestRefusedError(f"the {what} cannot be enforced: {matcher.get_error()}")
        return GrammarConstraint(matcher, self._tokenizer.vocab_size)


class GrammarConstraint:
    """A place in a grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        from llguidance.numpy import allocate_token_bitmask

        self._matcher = matcher
        self._vocab_size = vocab_size
        self._bits = allocate_token_bitmask(1, vocab_size)

    def allowed(self) -> Flags:
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._bits, 0)
        bits = np.unpackbits(self._bits[0].view(np.uint8), bitorder="little")
        return cast("Flags", bits[: self._vocab_size].astype(np.bool_))

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped())
