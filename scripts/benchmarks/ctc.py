"""Training steps with further losses of CTC / plain steps, on the embedded speech: ctc [WORD...]"""

import tempfile

from benchmarks import interleaved, print_ratio
from benchmarks.loop import NEVER, Prepared, famx_loop, first_batches

# settings -> largest accepted ratio
ROWS = {"task.consistency=0.2": 2.1, "task.intermediate_layer=2": 1.2}


def main(words: list[str], rounds: int = 6, steps: int = 8) -> None:
    """Prints the ratios; the words are of the command line of `famx.train`."""
    max_steps = f"trainer.max_steps={2 * rounds * steps}"
    for row, gate in ROWS.items():
        loops = []
        with tempfile.TemporaryDirectory() as folder:
            for number, options in enumerate((row.split(), [])):
                prepared = Prepared(*words, *options, max_steps)
                trainer = prepared.trainer(f"{folder}/{number}", NEVER)
                loops.append(famx_loop(trainer, first_batches(prepared, steps)))
            for loop in loops:
                loop(0)
            print_ratio(row, interleaved(*loops, rounds), str(gate))
