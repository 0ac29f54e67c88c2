"""Writes text with a language model: python -m famx.generate RUN --prompt TEXT"""

from argparse import Namespace

import torch
from tokenizers import Tokenizer

from famx.config.command import Parser, run_command, split_parts
from famx.data._tokenizers import known_characters, list_characters
from famx.files import printable
from famx.nn.sampling import Sampling, sample_tokens
from famx.notation import UserError
from famx.training.run_dir import open_run
from famx.validate import COUNT, NON_NEGATIVE, Rule, check_number

RULES = {
    "tokens": COUNT,
    "samples": COUNT,
    "temperature": NON_NEGATIVE,
    "top_k": NON_NEGATIVE,
    "top_p": Rule(lambda p: 0 < p <= 1, "above 0 and at most 1"),
}


def parse_arguments() -> Namespace:
    """Reads the command line.

    Raises:
        UserError: a value is not allowed.
    """
    parser = Parser(
        prog="python -m famx.generate", description="Writes text with a run of task=lm."
    )
    parser.add_run()
    parser.add_argument("--prompt", required=True, help="beginning of the text")
    parser.add_argument("--tokens", type=int, default=200, help="number of tokens to write (200)")
    parser.add_argument("--samples", type=int, default=1, help="number of texts (1)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 for the most probable tokens (0.8)"
    )
    parser.add_argument("--top-k", type=int, default=0, help="only of the K likeliest tokens")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="only of those whose probabilities sum to P"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (0)")
    parser.add_argument(
        "words",
        metavar="KEY=VALUE",
        nargs="*",
        default=[],
        help="trainer.device=NAME, trainer.threads=N, famx_parts=[file.py]",
    )
    arguments = parser.parse_intermixed_args()
    for name, rule in RULES.items():
        value = getattr(arguments, name)
        check_number("--" + name.replace("_", "-"), value, rule)
    return arguments


def main() -> int:
    """Prints the prompt and its continuation, one after the other for several samples.

    Returns:
        The exit status.
    """
    arguments = parse_arguments()
    # the user's parts are registered before the model is built
    parts, overrides = split_parts(arguments.words)
    config = open_run(arguments.run, parts, arguments.trust_edits).load_config()
    from famx.experiment.build import context_size
    from famx.inference import Recognizer

    recognizer = Recognizer(arguments.run, arguments.checkpoint, overrides, arguments.trust_edits)
    experiment = recognizer.experiment
    if experiment.task.output != "tokens":
        task = config["task"]["name"]
        remedy = ", and famx.translate translates" if task == "translate" else ""
        raise UserError(
            f"{arguments.run} is a run of task={task}; a run of task=lm writes text{remedy}"
        )
    # the prompt, once for each sample
    ids = encode_prompt(experiment.tokenizer, arguments.prompt)
    prompt = torch.tensor([ids] * arguments.samples, device=experiment.device)
    # the continuations
    rows = sample_tokens(
        experiment.model,
        prompt,
        arguments.tokens,
        context_size(config),
        Sampling(arguments.temperature, arguments.top_k, arguments.top_p),
        torch.Generator().manual_seed(arguments.seed),
    )
    for row in rows.tolist():
        # decoded with the prompt, since the first word of a text has no space before it
        print(experiment.tokenizer.decode(ids + row))
    return 0


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Returns the token ids of a prompt.

    Raises:
        UserError: it is empty, has characters without a token, or spaces that no token has.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"--prompt {printable(prompt)} is not UTF-8") from None
    ids: list[int] = tokenizer.encode(prompt).ids
    text = tokenizer.decode(ids)
    if text != prompt:
        unknown = set(prompt) - known_characters(tokenizer)
        if unknown:
            raise UserError(
                f"--prompt has characters outside the vocabulary: {list_characters(unknown)}"
            )
        raise UserError(f"--prompt {prompt!r} is {text!r} in tokens: write it so")
    if not ids:
        raise UserError("--prompt is empty: the model needs at least one token to begin with")
    return ids


if __name__ == "__main__":
    run_command(main, memory="use fewer --samples, or trainer.device=cpu")
