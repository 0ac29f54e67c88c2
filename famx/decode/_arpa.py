"""Reads n-gram language models in ARPA form, the text format of SRILM and KenLM, also gzipped."""

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from famx.notation import UserError

GZIP = b"\x1f\x8b"  # first bytes of a gzipped file
MAX_QUOTED = 60  # characters of a line in an error


@dataclass(frozen=True)
class NGrams:
    """All n-grams of one order.

    Args:
        words: numbers of their words in the list of unigrams.
        log_probs: log10 of the probability of the last word after the others.
        backoffs: log10 of the factor of shorter n-grams, where no longer one is listed.
        lines: lines of the file, for messages.
    """

    words: Int64[np.ndarray, "m n"]
    log_probs: Float64[np.ndarray, " m"]
    backoffs: Float64[np.ndarray, " m"]
    lines: Int64[np.ndarray, " m"]


@dataclass(frozen=True)
class Arpa:
    """A language model as its file states it.

    Args:
        file: path of the file, for messages.
        words: words of the unigrams, in the order of the file.
        orders: n-grams of the orders 1, 2, ...
    """

    file: str
    words: list[str]
    orders: list[NGrams]


def read_arpa(file: str) -> Arpa:
    r"""Reads a language model: `\data\`, the numbers of n-grams, `\1-grams:` and so on, `\end\`.

    Raises:
        UserError: there is no such file, it is cut short, or a line breaks the format; the message
            has the file, the line and the rule.
    """
    return _Reader(file).read()


class _Reader:
    """Reads one file line by line."""

    def __init__(self, file: str):
        if not Path(file).is_file():
            raise UserError(f"{file} {'is a folder' if Path(file).is_dir() else 'does not exist'}")
        self.file = file
        self.lines = self._lines()
        self.number = 0
        self.words: dict[str, int] = {}

    def read(self) -> Arpa:
        counts = self._read_counts()
        orders = []
        for n, count in enumerate(counts, 1):
            orders.append(self._read_section(n, count, n == len(counts)))
        line = self._next_line()
        if line != "\\end\\":
            raise self._error(f"expected \\end\\ after the last n-gram, got {_quoted(line)}")
        return Arpa(self.file, list(self.words), orders)

    def _lines(self) -> Iterator[str]:
        """Yields the lines without spaces around them, but no empty ones."""
        with open(self.file, "rb") as opened:
            is_gzipped = opened.read(2) == GZIP
        stream = gzip.open(self.file) if is_gzipped else open(self.file, "rb")  # noqa: SIM115
        with stream:
            try:
                for line in stream:
                    self.number += 1
                    text = line.decode().strip()
                    if text:
                        yield text
            except UnicodeDecodeError:
                raise self._error("it is not UTF-8") from None
            except EOFError:
                raise UserError(f"{self.file} is cut short: its gzip stream has no end") from None
            except (OSError, zlib.error) as error:
                raise UserError(f"{self.file} cannot be read: {error}") from None

    def _next_line(self) -> str:
        line = next(self.lines, None)
        if line is None:
            raise UserError(
                f"{self.file} is cut short after line {self.number:,}: it has no \\end\\"
            )
        return line

    def _error(self, rule: str) -> UserError:
        return UserError(f"{self.file}, line {self.number:,}: {rule}")

    def _read_counts(self) -> list[int]:
        """Reads the header, and the first line of the section of unigrams."""
        # text before the header is a comment
        for line in self.lines:
            if line == "\\data\\":
                break
        else:
            raise UserError(f"{self.file} has no line \\data\\, so it is no ARPA file")
        counts: list[int] = []
        while (line := self._next_line()) != "\\1-grams:":
            match = re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line)
            if match is None or int(match[1]) != len(counts) + 1:
                expected = f"ngram {len(counts) + 1}=COUNT"
                raise self._error(f"expected {expected} or \\1-grams:, got {_quoted(line)}")
            counts.append(int(match[2]))
        if not counts or not counts[0]:
            raise self._error("the header states no unigrams")
        return counts

    def _read_section(self, n: int, count: int, is_last: bool) -> NGrams:
        """Reads the n-grams of one order; the heading of the first one is read already."""
        heading = f"\\{n}-grams:"
        if n > 1:
            line = self._next_line()
            if line != heading:
                raise self._error(f"expected {heading}, got {_quoted(line)}")
        words: list[int] = []
        log_probs = []
        backoffs = []
        lines: list[int] = []
        for _ in range(count):
            line = self._next_line()
            if line.startswith("\\"):
                raise self._error(
                    f"{heading} has {len(lines):,} n-grams, and the header states {count:,}"
                )
            log_prob, ngram, backoff = self._parse(line, n, is_last)
            words += ngram
            log_probs.append(log_prob)
            backoffs.append(backoff)
            lines.append(self.number)
        return NGrams(
            words=np.array(words, np.int64).reshape(-1, n),
            log_probs=np.array(log_probs, np.float64),
            backoffs=np.array(backoffs, np.float64),
            lines=np.array(lines, np.int64),
        )

    def _parse(self, line: str, n: int, is_last: bool) -> tuple[float, list[int], float]:
        """Returns the probability, the words and the backoff of a line."""
        fields = line.split()
        has_backoff = len(fields) == n + 2 and not is_last
        if len(fields) != n + 1 and not has_backoff:
            words = "1 word" if n == 1 else f"{n} words"
            optional = "" if is_last else ", and perhaps a backoff"
            raise self._error(
                f"a {n}-gram is a log10 probability and {words}{optional}, got {_quoted(line)}"
            )
        log_prob = self._parse_number(fields[0])
        if log_prob > 0:
            raise self._error(f"the log10 probability {fields[0]} is above 0")
        backoff = self._parse_number(fields[-1]) if has_backoff else 0.0
        texts = fields[1 : n + 1]
        if n == 1:
            if texts[0] in self.words:
                raise self._error(f"the unigram {texts[0]} is listed twice")
            self.words[texts[0]] = len(self.words)
        ngram = []
        for text in texts:
            if text not in self.words:
                raise self._error(f"the word {_quoted(text)} is not among the unigrams")
            ngram.append(self.words[text])
        return log_prob, ngram, backoff

    def _parse_number(self, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise self._error(f"{_quoted(text)} is not a number") from None
        if not math.isfinite(number):
            raise self._error(f"{text} is not finite")
        return number


def _quoted(text: str) -> str:
    return repr(text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "...")
