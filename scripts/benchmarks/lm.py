"""nanoGPT's CPU setting, famx against a bare loop of the same model: lm data.path=TEXT"""

import tempfile

from benchmarks import interleaved, print_ratio
from benchmarks.loop import NEVER, Prepared
from famx.training.evaluate import evaluate

STEPS = 100  # that one of the two takes before it is the other's turn


def main(words: list[str]) -> None:
    """Prints the ratio of times, and the validation loss of both."""
    # the same model and batches for both
    prepared = Prepared("experiment=shakespeare", *words)
    bare_stream = prepared.stream()
    model, step = prepared.bare()
    with tempfile.TemporaryDirectory() as folder:
        trainer = prepared.trainer(folder, NEVER)
        stream = trainer.gradients.prefetch(prepared.stream())

        def famx_steps(_: int) -> None:
            for _ in range(STEPS):
                trainer.advance(stream)

        def bare_steps(_: int) -> None:
            for _ in range(STEPS):
                _, _, batch = next(bare_stream)
                step(batch)

        rounds = prepared.settings.max_steps // STEPS
        timings = interleaved(famx_steps, bare_steps, rounds)
    print_ratio("famx / bare loop", timings, "1.05")

    # nanoGPT validates on the split that famx calls test
    experiment = prepared.experiment
    loader = experiment.loader("test")
    for name, trained, seconds in (
        ("famx", trainer.model, sum(timings[0])),
        ("bare", model, sum(timings[1])),
    ):
        batches = loader.eval_batches()
        loss = evaluate(trained, experiment.task, batches, experiment.device).loss
        print(
            f"{name}: {seconds:.1f} s, validation loss {loss:.3f} "
            f"over {len(loader.dataset)} blocks (gate 1.90)"
        )
