"""famx: a bench on which ideas for speech recognition and language are tried and judged."""


def load(run, checkpoint: str = "best"):
    """A trained run, ready to transcribe: `famx.load("outputs/RUN").transcribe(["a.wav"])`.

    Args:
        run: the run's folder.
        checkpoint: `best` on dev, or `last`.
    """
    from famx.inference import Recognizer

    return Recognizer(run, checkpoint)
