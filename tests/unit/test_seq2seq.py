"""Speech to text with a decoder: the model, its loss, and its decoding by steps and by beams."""

from itertools import product

import pytest
import torch
from gradients import parameters_without_gradient
from hydra import compose, initialize_config_dir
from test_graph_ready import on_device
from torch.testing import assert_close

from famx.config.schema import CONF, register_schemas, to_plain
from famx.config.versions import VERSION_BASE
from famx.data._tokenizers import encode, train_tokenizer
from famx.experiment import build_model
from famx.experiment.report import part_names
from famx.experiment.resolve import resolve
from famx.nn.batch import Batch
from famx.nn.encoding import Encoding
from famx.nn.state import DecodeState
from famx.notation import Modality, UserError
from famx.registry import LAYER_ROOMS, PARTS, build, names
from famx.task._next_tokens import text_inputs
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
SMALL = [
    *(
        "task=seq2seq",
        "model=transformer",
        "task.vocab_size=0",
        "model.d_model=24",
        "model.n_heads=4",
    ),
    *("model.n_layers=2", "model.decoder_layers=2", "frontend=log_mel", "frontend.channels=4"),
]
TOKENIZER = train_tokenizer(["abc"], ["<blank>", "<end>"])
VOCAB_SIZE = TOKENIZER.get_vocab_size()
TEXTS = ["abca", "b"]
END = 1


def compose_config(*words):
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return resolve(to_plain(compose("train", [*SMALL, *words])))


def build_small(*words):
    """Returns a model in evaluation, with scores far apart, so that its texts are not empty."""
    model = build_model(compose_config(*words), VOCAB_SIZE).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
        for layer in (model.score, model.decoder.score):
            layer.weight *= 3
    return model


def speech_batch(texts=tuple(TEXTS), samples=8000):
    targets = [torch.tensor(encode(TOKENIZER, text, text), dtype=torch.long) for text in texts]
    return Batch(
        ids=list(texts),
        texts=list(texts),
        inputs=torch.randn(len(texts), samples),
        lengths=torch.tensor([samples - 1600 * i for i in range(len(texts))]),
        targets=torch.nn.utils.rnn.pad_sequence(targets, batch_first=True),
        target_lengths=torch.tensor([len(row) for row in targets]),
        spans=None,
        modality=Modality.SPEECH,
    )


def beam_search(model, encoding, **options):
    decoder = build("decode", {"name": "seq2seq_beam", **options}, tokenizer=TOKENIZER)
    return decoder.search(model, encoding)


@torch.inference_mode()
def predict_by_steps(model, text, encoding):
    state = DecodeState()
    steps = [model.predict(text[:, u : u + 1], encoding, state) for u in range(text.shape[1])]
    return torch.cat(steps, 1)


PARTS_OF_LAYERS = [f"{room}={name}" for room in LAYER_ROOMS for name in names(room)]


@pytest.mark.parametrize("choice", PARTS_OF_LAYERS)
def test_step_by_step_equals_the_pass_over_all_tokens(choice):
    model = build_small(choice)
    batch = speech_batch()
    text = torch.randint(2, VOCAB_SIZE, (2, 6))
    with torch.inference_mode():
        encoding = model.encode(batch.inputs, batch.lengths)
        expected = model.predict(text, encoding)
    scale = expected.abs().max().item()
    assert_close(predict_by_steps(model, text, encoding), expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("attention", names("attention"))
def test_scores_depend_on_the_audio_and_on_earlier_tokens_alone(attention):
    model = build_small(f"attention={attention}")
    batch = speech_batch()
    text = torch.randint(2, VOCAB_SIZE, (2, 6))
    changed_text = text.clone()
    changed_text[:, 3] = 2 + (text[:, 3] - 1) % (VOCAB_SIZE - 2)
    with torch.inference_mode():
        encoding = model.encode(batch.inputs, batch.lengths)
        scores = model.predict(text, encoding)
        changed = model.predict(changed_text, encoding)
        other = model.predict(text, model.encode(batch.inputs.flip(0), batch.lengths))
    assert_close(changed[:, :3], scores[:, :3], rtol=1e-4, atol=1e-4)
    assert (changed[:, 3:] - scores[:, 3:]).abs().amax((1, 2)).min() > 1e-3
    assert (other - scores).abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize("attention", names("attention"))
def test_padding_changes_nothing(attention):
    model = build_small(f"attention={attention}")
    batch = speech_batch()
    text, text_lengths = text_inputs(batch)
    with torch.inference_mode():
        encoding = model.encode(batch.inputs, batch.lengths)
        padded = model.predict(text, encoding, text_lengths=text_lengths)
        length = int(batch.lengths[1])
        alone = model.encode(batch.inputs[1:, :length], batch.lengths[1:])
        expected = model.predict(text[1:, :2], alone)
    assert text_lengths.tolist() == [5, 2]
    assert_close(padded[1:, :2], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("attention", names("attention"))
def test_every_parameter_gets_a_gradient(attention):
    model = build_model(compose_config(f"attention={attention}"), VOCAB_SIZE)
    task = build("task", {"name": "seq2seq"}, tokenizer=TOKENIZER)
    assert not parameters_without_gradient(model, task.loss(model, speech_batch()))


def test_loss_reads_nothing_on_the_host():
    model = build_model(compose_config("attention=worm"), VOCAB_SIZE)
    task = build("task", {"name": "seq2seq"}, tokenizer=TOKENIZER)
    batch = speech_batch()
    text, text_lengths = text_inputs(batch)
    outputs = model(batch.inputs, batch.lengths, None, text, text_lengths)
    with on_device():
        frames, _ = model.frames(batch.inputs, batch.lengths)
        encoding = Encoding(frames, outputs[1], outputs[0], outputs[1])
        model.predict(text, encoding, text_lengths=text_lengths)
    # CTC of the CPU reads the lengths, that of CUDA does not
    task.ctc_weight = 0.0
    task.ctc.loss_of_scores = lambda *_: torch.zeros(())
    with on_device():
        task.loss_of_outputs(*outputs, batch).backward()


class FixedOutputs(torch.nn.Module):
    """Gives the same scores whatever it reads."""

    def __init__(self, frame_scores, text_scores):
        super().__init__()
        self.outputs = frame_scores, torch.tensor([frame_scores.shape[1]] * 2), text_scores

    def forward(self, *inputs):
        return self.outputs


def test_loss_equals_that_computed_by_hand():
    batch = speech_batch()
    frame_scores = torch.randn(2, 9, VOCAB_SIZE)
    text_scores = torch.randn(2, 5, VOCAB_SIZE)
    options = {"name": "seq2seq", "ctc_weight": 0.2, "label_smoothing": 0.3}
    task = build("task", options, tokenizer=TOKENIZER)
    log_probs = text_scores.log_softmax(-1)
    total = torch.zeros(())
    for row, text in enumerate(TEXTS):
        for u, token in enumerate([*encode(TOKENIZER, text, text), END]):
            # the smoothed target: .7 of the token, .3 shared by all
            total -= 0.7 * log_probs[row, u, token] + 0.3 * log_probs[row, u].mean()
    ctc = build("task", {"name": "ctc"}, tokenizer=TOKENIZER)
    ctc_loss = ctc.loss_of_scores(frame_scores, torch.tensor([9, 9]), batch)
    loss = task.loss(FixedOutputs(frame_scores, text_scores), batch)
    assert_close(loss, 0.2 * ctc_loss + 0.8 * total / 5)
    assert task.count(batch) == 5


@pytest.fixture(scope="module")
def encoded():
    torch.manual_seed(3)
    model = build_small()
    batch = speech_batch(("a", "b", "c"))
    with torch.inference_mode():
        return model, model.encode(batch.inputs, batch.lengths)


@torch.inference_mode()
def score_of_text(model, encoding, row, tokens, ctc_weight):
    """Returns the score of a complete text, from the pass over all of it."""
    one = Encoding(*(tensor[row : row + 1] for tensor in encoding))
    text = torch.tensor([[END, *tokens]])
    log_probs = model.predict(text, one)[0].double().log_softmax(-1)
    score = sum(float(log_probs[u, token]) for u, token in enumerate([*tokens, END]))
    frames = one.scores[0, : int(one.lengths)].log_softmax(-1)
    ctc = torch.nn.functional.ctc_loss(
        frames.double()[:, None],
        torch.tensor([tokens]),
        one.lengths,
        torch.tensor([len(tokens)]),
        reduction="sum",
    )
    return (1 - ctc_weight) * score - ctc_weight * float(ctc)


def test_a_beam_of_one_is_greedy_decoding(encoded):
    model, encoding = encoded
    greedy = build("decode", {"name": "seq2seq_greedy"}, tokenizer=TOKENIZER)
    texts = greedy.decode_encoding(model, encoding)
    hypotheses = beam_search(model, encoding, beam=1, ctc_weight=0.0)
    assert texts == [TOKENIZER.decode(hypothesis.tokens) for hypothesis in hypotheses]
    assert any(texts)


@pytest.mark.parametrize("length_norm", [0.0, 1.0])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.4, 1.0])
def test_a_wider_beam_never_has_a_lower_score(ctc_weight, length_norm, encoded):
    model, encoding = encoded
    earlier = [-torch.inf] * 3
    for beam in (1, 2, 3, 5, 8):
        options = {"beam": beam, "ctc_weight": ctc_weight, "length_norm": length_norm}
        scores = [hypothesis.score for hypothesis in beam_search(model, encoding, **options)]
        for score, earlier_score in zip(scores, earlier, strict=True):
            assert score >= earlier_score - 1e-5
        earlier = scores


def test_the_score_of_a_beam_is_that_of_its_text(encoded):
    model, encoding = encoded
    hypotheses = beam_search(model, encoding, beam=4, ctc_weight=0.4)
    n_complete = 0
    for row, (tokens, score) in enumerate(hypotheses):
        if len(tokens) < int(encoding.lengths[row]):
            n_complete += 1
            expected = score_of_text(model, encoding, row, tokens, ctc_weight=0.4)
            assert score == pytest.approx(expected, rel=1e-5)
    assert n_complete


def test_a_beam_as_wide_as_all_texts_has_the_best_one():
    torch.manual_seed(5)
    model = build_small()
    batch = speech_batch(("a",), samples=1600)
    with torch.inference_mode():
        encoding = model.encode(batch.inputs, batch.lengths)
    n_frames = int(encoding.lengths)
    assert n_frames <= 4
    best = -torch.inf
    for size in range(n_frames):
        for tokens in product(range(2, VOCAB_SIZE), repeat=size):
            best = max(best, score_of_text(model, encoding, 0, list(tokens), ctc_weight=0.4))
    (hypothesis,) = beam_search(model, encoding, beam=64, ctc_weight=0.4)
    if len(hypothesis.tokens) < n_frames:
        assert hypothesis.score == pytest.approx(best, rel=1e-5)
    assert hypothesis.score >= best - 1e-5


def test_a_signal_without_frames_has_no_text():
    torch.manual_seed(3)
    model = build_small()
    batch = speech_batch(("a", "b"))
    with torch.inference_mode():
        encoding = model.encode(batch.inputs, batch.lengths)
        lengths = encoding.lengths * torch.tensor([0, 1])
        without = encoding._replace(lengths=lengths, limits=lengths)
        expected = [h.tokens for h in beam_search(model, encoding, beam=3, ctc_weight=0.3)]
        assert expected[1]
        for weight in (0.0, 0.3, 1.0):
            (empty, other) = beam_search(model, without, beam=3, ctc_weight=weight)
            assert empty.tokens == []
            assert other.tokens or weight != 0.3
        # as greedy decoding
        greedy = build("decode", {"name": "seq2seq_greedy"}, tokenizer=TOKENIZER)
        assert greedy.decode_encoding(model, without)[0] == ""


def test_a_model_learns_two_recordings_by_heart():
    model = build_model(compose_config("layer.dropout=0"), VOCAB_SIZE).train()
    task = build("task", {"name": "seq2seq"}, tokenizer=TOKENIZER)
    batch = speech_batch()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    model.eval()
    for name in ("seq2seq_greedy", "seq2seq_beam", "ctc_greedy"):
        decoder = build("decode", {"name": name}, tokenizer=TOKENIZER)
        assert decoder(model, batch) == TEXTS


def test_parts_of_the_decoder_are_listed_with_those_of_the_layers():
    config = compose_config("model.layers=[{attention:worm},{attention:worm}]")
    assert part_names(config)["attention"] == "multihead+worm"


def test_the_decoder_has_half_of_the_layers_in_pairs_by_default():
    config = compose_config("model.n_layers=6", "model.decoder_layers=null")
    assert config["model"]["decoder_layers"] == 3
    decoder = build_model(config, VOCAB_SIZE).decoder
    assert len(decoder.text_layers) == len(decoder.memory_layers) == 3


def test_decoder_layers_of_a_task_without_decoder_are_refused():
    with pytest.raises(UserError, match="decoder_layers=2 has no effect with task=ctc"):
        compose_config("task=ctc")


def test_a_block_that_cannot_decode_is_refused(monkeypatch):
    part = PARTS["attention"]["multihead"]
    monkeypatch.setattr(part, "exempt", {"causal": "it looks ahead"}, raising=False)
    with pytest.raises(
        UserError, match=r"attention=multihead cannot be used .* \(it looks ahead\)"
    ):
        build_small()
    # tasks without a decoder may use it
    build_model(compose_config("task=ctc", "model.decoder_layers=null"), VOCAB_SIZE)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": "seq2seq_beam", "beam": 0}, "beam=0 must be at least 1"),
        ({"name": "seq2seq_beam", "ctc_weight": 1.5}, "ctc_weight=1.5 must be from 0 to 1"),
        ({"name": "seq2seq_beam", "length_norm": -1.0}, "length_norm=-1.0 must be from 0 to 1"),
    ],
)
def test_options_of_the_beam_are_checked(choice, message):
    with pytest.raises(UserError, match=message):
        build("decode", choice, tokenizer=TOKENIZER)


def test_options_of_the_task_are_checked():
    for options, message in (
        ({"ctc_weight": 2.0}, "ctc_weight=2.0 must be from 0 to 1"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 must be from 0 to below 1"),
    ):
        with pytest.raises(UserError, match=message):
            build("task", {"name": "seq2seq", **options}, tokenizer=TOKENIZER)
