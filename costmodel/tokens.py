"""Tokens estimated from bytes, for plans and engines without a tokenizer at hand.

Byte-pair vocabularies give about 4 bytes a token on English prose and code; scripts of three bytes
a character come out near 0.75 tokens a character, which is the right size too. An engine's own
`count_tokens` beats this wherever there is one.
"""

from __future__ import annotations

BYTES_PER_TOKEN = 4


def tokens_of_bytes(size_bytes: int) -> int:
    """Estimated tokens of `size_bytes` of UTF-8 text, rounded up.

    Example:
        >>> tokens_of_bytes(0), tokens_of_bytes(1), tokens_of_bytes(9)
        (0, 1, 3)
    """
    return -(-size_bytes // BYTES_PER_TOKEN)


def estimate_tokens(text: str) -> int:
    """Estimated tokens of `text`: at least 1 unless it is empty.

    Example:
        >>> estimate_tokens("Which prefix do these share?"), estimate_tokens("東京")
        (7, 2)
    """
    if text.isascii():
        return tokens_of_bytes(len(text))
    return tokens_of_bytes(len(text.encode(errors="surrogatepass")))
