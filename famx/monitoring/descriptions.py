"""Descriptions of the tags in TensorBoard: one for each curve, and a page of text."""

from famx.monitoring.optimizer_probe import WINDOW

# tags that begin like this; the longest beginning decides. In the order of the page of text
DESCRIPTIONS = {
    "Results/": (
        "what the run has reached: best dev score, test scores, and step. The HPARAMS tab lists "
        "these numbers first"
    ),
    "train/loss": "mean loss of the steps since the previous report",
    "train/grad_norm": "norm of all gradients before clipping, in the step of the report",
    "train/lr": "learning rate of the first parameter group",
    "train/padding": "share of a batch that is padding",
    "dev/": "score of the current (averaged) weights on dev",
    "test/": "score of the best weights on a test split",
    "bands/": (
        f"power of the gradients in a band of frequencies over the last {WINDOW} steps, mean over "
        "the tensors of a kind; 1 = white noise. Named by kind, band, and its periods in steps: "
        "slow bands (32+) are drift and signal, fast bands (2-2.3) are noise and oscillation"
    ),
    "optim/momentum": (
        "momentum chosen: the coefficients that the momentum rule used in the step of the report "
        "(histogram over tensors; `/kind`: mean over the tensors of a kind)"
    ),
    "optim/skipped": "number of steps skipped so far because a gradient was not finite",
    "momentum/fired": "share of the measured tensors whose momentum the rule has changed",
    "probe/coefficient": (
        "momentum set: the coefficient that a rule chose, else the optimizer's own setting "
        "(beta1 or momentum), mean over the tensors of a kind"
    ),
    "probe/momentum": (
        "momentum in effect: the a of `m_t = a*m_(t-1) + b*g_t`, fitted to the averages of "
        f"gradients (or updates) over {WINDOW} steps. Equals the momentum set if updates follow it"
    ),
    "probe/fired": "share of the tensors of a kind whose momentum the rule has changed",
    "probe/white": "share of tensors whose gradient passes a test of white noise at the 5 % level",
    "probe/lag": "correlation of a gradient with that of 1 to 4 steps before; white noise = 0",
    "probe/slow": "power in the slowest quarter of the bands; white noise = 1",
    "probe/fast": "power in the fastest quarter of the bands; white noise = 1",
    "probe/cosine": "cosine of the angle between the average of gradients and the gradient",
    "probe/angle": "angle between the weights before and after the step, in radians",
    "probe/update_to_weight": "norm of the update divided by the norm of the weights",
    "probe/gradient_norm": "norm of a tensor's gradient before clipping",
}

HOW_TO_READ = """\
**Tags** are `room/metric`. What parts report is the mean over all blocks; the kinds of tensors are
conv, attention, embedding, norm (with all biases) and other.

{descriptions}

**CUSTOM SCALARS** has one chart per kind with all its bands, and one with the momentum of all
kinds. **TIME SERIES** has the same curves one by one.

**IMAGES** has one row per tensor, by kind. `bands/gradients` (any optimizer) and `bands/rule` (what
FAM decides by: its history of bands) have one column per band, titled by its periods in steps. Grey
is a band or a tensor that is not measured; the colour bar marks white noise. Of the `probe/` images
the columns are reports, from the first to the last. Names are sharp with "Show actual image size".
`dev/utterance` is one utterance of dev, at each evaluation: its spectrogram with the tokens of the
hypothesis, and what the model finds in each frame. `attention/layer_1` and its like, at the end of
the run, are what each position of an attention block reads from: the norm of the derivative of an
output by each input, as a share of its row.

**HPARAMS** has one row per run from its first step on, so also of runs that were stopped. Click on
a title to sort by it.

**Numbers** of single tensors are in `spectrum.parquet` in the folder of the run:
`famx.monitoring.spectrum_log.read_decisions(file)` returns what a momentum rule decided, and
`python -m famx.spectra RUN` summarises it. Curves are in `metrics.jsonl`.
"""


def describe(tag: str) -> str:
    """Returns the description of a curve or an image; an empty string if there is none."""
    beginnings = [beginning for beginning in DESCRIPTIONS if tag.startswith(beginning)]
    return DESCRIPTIONS[max(beginnings, key=len)] if beginnings else ""


def how_to_read() -> str:
    """Returns the page of TensorBoard's text tab, as Markdown."""
    rows = ["| tag | meaning |", "| --- | --- |"]
    for beginning, description in DESCRIPTIONS.items():
        name = f"{beginning}..." if beginning.endswith("/") else beginning
        rows.append(f"| `{name}` | {description} |")
    return HOW_TO_READ.format(descriptions="\n".join(rows))
