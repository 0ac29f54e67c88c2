"""Lengths that headers of audio files state, where FFmpeg does not pass them on."""

import zlib
from io import BufferedIOBase
from typing import Literal, NamedTuple


class ChunkFormat(NamedTuple):
    """A format of chunks: each is its name, the size of its body, and its body.

    Args:
        magic: first bytes of a file.
        start: position of the first chunk.
        name_bytes: length of a name.
        size_bytes: length of a size.
        order: byte order of sizes.
        padding: chunks begin at multiples of so many bytes.
        includes_header: whether a size includes name and size.
    """

    magic: bytes
    start: int
    name_bytes: int
    size_bytes: int
    order: Literal["little", "big"]
    padding: int
    includes_header: bool


# WAV, Sony Wave64 and Apple's Core Audio Format
CHUNK_FORMATS = (
    ChunkFormat(b"RIFF", 12, 4, 4, "little", 2, False),
    ChunkFormat(b"riff\x2e\x91\xcf\x11", 40, 16, 8, "little", 8, True),
    ChunkFormat(b"caff", 8, 4, 8, "big", 1, False),
)
# A program that writes into a pipe does not know the length, so the header states nearly 2 or 4
# GiB, or -1.
STREAMED_BYTES = 2**31 - 2**16
# first bytes of the pages of Ogg (RFC 3533), and the size of their headers
OGG = b"OggS"
OGG_HEADER = 27
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
# bytes of an ID3v2 header, which precedes its tag
ID3_HEADER = 10
# bytes of the first MP3 frame in which its length is stated
LENGTH_FRAME = 256


def sample_bytes(stream: BufferedIOBase) -> tuple[int, int]:
    """Returns the bytes of samples that a header states, and how many of them the file holds.

    Both are 0 where this is not known: the format has none of these headers, or the length was
    unknown to its writer.
    """
    n_bytes = stream.seek(0, 2)
    stream.seek(0)
    start = stream.read(16)
    for form in CHUNK_FORMATS:
        if start.startswith(form.magic):
            return _data_chunk(stream, form, n_bytes)
    return 0, 0


def _data_chunk(stream: BufferedIOBase, form: ChunkFormat, n_bytes: int) -> tuple[int, int]:
    """Returns the stated size of the chunk `data` of a file of `n_bytes`, and what it holds."""
    position = form.start
    header_bytes = form.name_bytes + form.size_bytes
    while position + header_bytes <= n_bytes:
        stream.seek(position)
        name = stream.read(form.name_bytes)
        size = int.from_bytes(stream.read(form.size_bytes), form.order)
        if form.includes_header:
            size = max(0, size - header_bytes)
        position += header_bytes
        if name.startswith(b"data"):
            # some programs state the length of the file instead, without the first chunk's header
            is_unknown = size in (0, n_bytes - 8) or size >= STREAMED_BYTES
            return (0, 0) if is_unknown else (size, min(size, n_bytes - position))
        position += size + -size % form.padding
    return 0, 0


def damaged_ogg_page(stream: BufferedIOBase) -> int | None:
    """Returns the position of the first page of an Ogg file that is incomplete or damaged.

    FFmpeg leaves such pages out. It is None if there are none, and for other formats.
    """
    stream.seek(0)
    position = 0
    while page := stream.read(OGG_HEADER):
        if not page.startswith(OGG):
            # what follows the last page is not audio, such as a tag
            return position if OGG in stream.read() else None
        # the header ends with the number of segments; their sizes follow
        sizes = stream.read(page[-1])
        body = stream.read(sum(sizes))
        is_complete = len(page) == OGG_HEADER and len(body) == sum(sizes)
        if not is_complete or int.from_bytes(page[22:26], "little") != _ogg_checksum(
            page[:22] + bytes(4) + page[26:] + sizes + body
        ):
            return position
        position = stream.tell()
    return None


def _ogg_checksum(page: bytes) -> int:
    """Returns the checksum of a page, whose field of it is 0.

    It has the polynomial of zlib's, with all bits in the other order and no inversion.
    """
    reflected = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)


def states_mp3_length(stream: BufferedIOBase) -> bool:
    """Returns whether the first frame of an MP3 file states how many frames follow (Xing, VBRI)."""
    stream.seek(0)
    header = stream.read(ID3_HEADER)
    position = 0
    if header.startswith(b"ID3"):
        # a tag, whose size has seven bits in each byte
        size = 0
        for byte in header[6:]:
            size = size * 128 + (byte & 127)
        position = ID3_HEADER + size
    stream.seek(position)
    frame = stream.read(LENGTH_FRAME)
    for tag in (b"Xing", b"Info"):
        start = frame.find(tag)
        if start >= 0:
            # the lowest bit: the number of frames is stated
            return frame[start + 7 : start + 8] > b"" and bool(frame[start + 7] & 1)
    return b"VBRI" in frame
