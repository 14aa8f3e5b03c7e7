"""GPT-2's alphabet: how vocabularies over bytes write each byte as a printable character."""

from __future__ import annotations


def byte_level_bytes(token: str) -> bytes:
    """The inverse of GPT-2's printable bytes; a token with other characters stands for itself."""
    try:
        return bytes([BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()


def _printable_bytes() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, others for U+0100 …"""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_OF = _printable_bytes()
