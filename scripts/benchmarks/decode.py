"""Seconds of audio per second that are recognised: decode [RUN] [KEY=VALUE...]

Without a run, the default model has its initial weights, whose scores have no blanks to skip.
"""

import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.loop import Prepared
from famx.experiment.build import Experiment
from famx.inference import Recognizer
from famx.nn.batch import Batch
from famx.registry import build

SECONDS = 120  # of audio
ROUNDS = 3
ORDER = 4  # of the n-grams
DISCOUNT = 0.7  # of each count, for shorter n-grams


def main(words: list[str]) -> None:
    """Prints the speed of greedy decoding, and of a beam of 8 without and with 4-grams of words."""
    if words and Path(words[0]).is_dir():
        experiment = Recognizer(words[0], overrides=words[1:], trust_edits=True).experiment
    else:
        experiment = Prepared(*words).experiment
    batches = _batches(experiment)
    amount = sum(batch.amount for batch in batches)
    texts = experiment.loader("train").dataset.texts
    with tempfile.NamedTemporaryFile("w", suffix=".arpa") as file:
        ngrams = NGrams(text.split() for text in set(texts))
        file.writelines(line + "\n" for line in ngrams.arpa())
        file.flush()
        rows = {
            "greedy": ({"name": "ctc_greedy"}, 100),
            "beam 8": ({"name": "ctc_beam"}, 0),
            f"beam 8, {ORDER}-gram": ({"name": "ctc_beam", "lm": file.name}, 40),
        }
        tokenizer = experiment.tokenizer
        decoders = {}
        for name, (choice, _) in rows.items():
            decoders[name] = build("decode", choice, tokenizer=tokenizer, load_run=str)
        fastest = dict.fromkeys(rows, math.inf)
        for _ in range(ROUNDS):
            for name, decoder in decoders.items():
                started = time.perf_counter()
                for batch in batches:
                    decoder(experiment.model, batch)
                fastest[name] = min(fastest[name], time.perf_counter() - started)
    for name, (_, gate) in rows.items():
        expected = f" (gate {gate})" if gate else ""
        print(f"{name:16}{amount / fastest[name]:6.0f} s of audio a second{expected}")


def _batches(experiment: Experiment) -> list[Batch]:
    """Returns batches of test, of some minutes in all."""
    experiment.model.eval()
    batches = []
    for batch in experiment.loader("test").eval_batches():
        batches.append(batch.to(experiment.device))
        if sum(batch.amount for batch in batches) > SECONDS:
            break
    return batches


class NGrams:
    """Counts of the n-grams of sentences, and their probabilities by absolute discounting."""

    def __init__(self, sentences: Iterable[Sequence[str]]):
        self.counts: list[Counter] = [Counter() for _ in range(ORDER + 1)]
        for sentence in sentences:
            words = ("<s>", *sentence, "</s>")
            for n in range(1, ORDER + 1):
                self.counts[n].update(words[i : i + n] for i in range(len(words) - n + 1))
        self.counts[1]["<s>",] = 0
        self.counts[1]["<unk>",] = 1
        # of each context, how often and by how many words it is continued
        self.totals: Counter = Counter()
        self.types: Counter = Counter()
        for counts in self.counts:
            for ngram, count in counts.items():
                self.totals[ngram[:-1]] += count
                self.types[ngram[:-1]] += 1

    def backoff(self, context: tuple[str, ...]) -> float:
        """Returns the share of shorter n-grams after a context."""
        total = self.totals[context]
        return DISCOUNT * self.types[context] / total if total else 1.0

    def probability(self, ngram: tuple[str, ...]) -> float:
        """Returns the probability of the last word after the others."""
        if not ngram:
            return 1 / len(self.counts[1])
        context = ngram[:-1]
        shorter = self.backoff(context) * self.probability(ngram[1:])
        counted = max(0, self.counts[len(ngram)][ngram] - DISCOUNT)
        return shorter + counted / max(1, self.totals[context])

    def arpa(self) -> Iterator[str]:
        """Yields the lines of an ARPA file."""
        orders = range(1, ORDER + 1)
        yield from ("\\data\\", *(f"ngram {n}={len(self.counts[n])}" for n in orders))
        for n in orders:
            yield f"\\{n}-grams:"
            for ngram in self.counts[n]:
                line = f"{math.log10(self.probability(ngram)):.6f}\t{' '.join(ngram)}"
                backoff = f"\t{math.log10(self.backoff(ngram)):.6f}" if n < ORDER else ""
                yield line + backoff
        yield "\\end\\"
