"""Lengths that headers of audio files state, where FFmpeg does not pass them on."""

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
# pages of Ogg: their first bytes, largest size, and header
OGG = b"OggS"
OGG_PAGE = 65_307
OGG_HEADER = 27
# bytes of an ID3v2 header, which precedes its tag
ID3_HEADER = 10
# bytes of the first MP3 frame in which its length is stated
LENGTH_FRAME = 256


def sample_bytes(stream: BufferedIOBase) -> tuple[int, int]:
    """Returns the bytes of samples that a header states, and how many of them the file holds.

    Both are 0 where this is not known: the format has none of these headers, or the length was
    unknown to its writer. Of an Ogg file they are the bytes of its last page.
    """
    n_bytes = stream.seek(0, 2)
    stream.seek(0)
    start = stream.read(16)
    for form in CHUNK_FORMATS:
        if start.startswith(form.magic):
            return _data_chunk(stream, form, n_bytes)
    if start.startswith(OGG):
        return _last_page(stream, n_bytes)
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


def _last_page(stream: BufferedIOBase, n_bytes: int) -> tuple[int, int]:
    """Returns the stated size of the last page of an Ogg file, and what the file holds of it."""
    stream.seek(max(0, n_bytes - OGG_PAGE))
    end = stream.read()
    page = end[end.rfind(OGG) :]
    if not page.startswith(OGG) or len(page) < OGG_HEADER:
        return 0, 0
    # the header ends with the number of segments; their sizes follow
    n_segments = page[OGG_HEADER - 1]
    sizes = page[OGG_HEADER : OGG_HEADER + n_segments]
    size = OGG_HEADER + n_segments + sum(sizes)
    return size, min(size, len(page))


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
