"""Parses the unencrypted part of an SRTP packet: RTP header and extensions (RFC 3550, 8285)."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

LEVEL_EXTENSION: Final = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
"""The audio level of RFC 6464, by the URI that an SDP gives it a number with."""
_SEQUENCE_BYTES: Final = 12
_ONE_BYTE: Final = 0xBEDE
_TWO_BYTES: Final = 0x1000

Kind = Literal["rtp", "rtcp", "stun", "dtls", "other"]


class Rtp(NamedTuple):
    """Header of an RTP packet.

    Attributes:
        ssrc: The stream.
        sequence: Number of the packet in it, 16 bits.
        timestamp: Of its first sample, in samples at 48 kHz, 32 bits.
        payload: Length of what is encrypted, in bytes, authentication tag included.
        extensions: Header extensions by their numbers.
    """

    ssrc: int
    sequence: int
    timestamp: int
    payload: int
    extensions: dict[int, bytes]


def kind_of(data: bytes) -> Kind:
    """Tells the protocols of a WebRTC port apart by the first bytes (RFC 7983, RFC 5761)."""
    if not data:
        return "other"
    if data[0] < 4:
        return "stun"
    if 20 <= data[0] < 64:
        return "dtls"
    if 128 <= data[0] < 192 and len(data) >= _SEQUENCE_BYTES:
        return "rtcp" if 192 <= data[1] <= 223 else "rtp"
    return "other"


def parse(data: bytes) -> Rtp:
    """Reads an RTP header; for packets that :func:`kind_of` calls `rtp`."""
    at = _SEQUENCE_BYTES + 4 * (data[0] & 15)
    extensions: dict[int, bytes] = {}
    if data[0] & 16:
        profile = int.from_bytes(data[at : at + 2], "big")
        end = at + 4 + 4 * int.from_bytes(data[at + 2 : at + 4], "big")
        extensions = _extensions(data[at + 4 : end], profile)
        at = end
    return Rtp(
        ssrc=int.from_bytes(data[8:12], "big"),
        sequence=int.from_bytes(data[2:4], "big"),
        timestamp=int.from_bytes(data[4:8], "big"),
        payload=max(0, len(data) - at),
        extensions=extensions,
    )


def _extensions(data: bytes, profile: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    one_byte = profile == _ONE_BYTE
    if not one_byte and profile & 0xFFF0 != _TWO_BYTES:
        return found
    at = 0
    while at + 1 < len(data):
        if data[at] == 0:  # padding
            at += 1
            continue
        if one_byte:
            number, length = data[at] >> 4, (data[at] & 15) + 1
            at += 1
            if number == 15:  # reserved: the rest is not to be read
                break
        else:
            number, length = data[at], data[at + 1]
            at += 2
        found[number] = data[at : at + length]
        at += length
    return found


def audio_level(extension: bytes) -> int:
    """Returns an RFC 6464 level in dBov: 0 is the loudest, -127 digital silence.

    The bit that says voice is of no use: libwebrtc sets it in every packet.
    """
    return -(extension[0] & 127)
