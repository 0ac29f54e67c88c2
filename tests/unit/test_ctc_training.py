"""Further losses of CTC: of a second view of a batch, and of an earlier layer."""

import pytest
import torch
from torch.nn.functional import kl_div

from famx.data._example import write_corpus
from famx.data._tokenizers import train_tokenizer
from famx.data.manifest import Manifest
from famx.frontend.log_mel import LogMel
from famx.model import Model
from famx.nn.batch import Batch
from famx.notation import Modality, UserError
from famx.registry import build
from famx.training.augmentation import sample_augmentation
from famx.training.loader import Loader
from famx.training.loader_config import LoaderConfig


def build_task(**options):
    tokenizer = train_tokenizer(["ab"], ["<blank>"])
    return build("task", {"name": "ctc", **options}, tokenizer=tokenizer)


def two_views_of_noise():
    """A batch of three recordings of different lengths, each with two sets of masks."""
    return Batch(
        ids=["0", "1", "2"],
        texts=[""] * 3,
        inputs=torch.randn(3, 8000),
        lengths=torch.tensor([8000, 6400, 4000]),
        targets=torch.tensor([[1, 2, 1], [2, 2, 0], [1, 0, 0]]),
        target_lengths=torch.tensor([3, 2, 1]),
        spans=torch.rand(3, 2, 4) / 4,
        modality=Modality.SPEECH,
        other_spans=torch.rand(3, 2, 4) / 4,
    )


class Linear(torch.nn.Linear):
    """A layer without attention."""

    def forward(self, x, mask=None, state=None):
        return super().forward(x)


def small_model(n_layers):
    layers = [Linear(8, 8) for _ in range(n_layers)]
    return Model(LogMel(8, n_mels=8, channels=4), layers, torch.nn.LayerNorm(8), 8, 3)


def gradients_of(loss, model):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


def test_loss_of_two_views_is_the_mean_of_both_and_their_divergence():
    batch = two_views_of_noise()
    model = small_model(0)
    losses = []
    views = []
    plain = build_task(consistency=0.0)
    for spans in (batch.spans, batch.other_spans):
        scores, lengths = model(batch.inputs, batch.lengths, spans)
        losses.append(plain.loss_of_scores(scores, lengths, batch))
        views.append(scores.log_softmax(-1))
    # each frame without padding, in both directions, each with a fixed target
    divergence = torch.zeros(())
    for row, length in enumerate(lengths.tolist()):
        first = views[0][row, :length]
        second = views[1][row, :length]
        options = {"log_target": True, "reduction": "sum"}
        divergence = divergence + kl_div(first, second.detach(), **options)
        divergence = divergence + kl_div(second, first.detach(), **options)
    expected = (losses[0] + losses[1]) / 2 + 0.3 * divergence / 2 / batch.target_lengths.sum()
    loss = build_task(consistency=0.3).loss(model, batch)
    torch.testing.assert_close(loss, expected)
    assert divergence > 0
    torch.testing.assert_close(gradients_of(loss, model), gradients_of(expected, model))


def test_loss_of_two_views_is_a_mean_over_tokens():
    task = build_task(consistency=0.3)
    batch = two_views_of_noise()
    model = small_model(0)
    shards = [batch.shard(rank, 2) for rank in range(2)]
    mean = sum(task.loss(model, shard) * task.count(shard) for shard in shards) / task.count(batch)
    torch.testing.assert_close(mean, task.loss(model, batch))


def test_evaluation_has_one_view():
    batch = two_views_of_noise()
    batch.other_spans = None
    model = small_model(0)
    task = build_task(consistency=0.3)
    expected = build_task().loss(model, batch)
    assert torch.equal(task.loss(model, batch), expected)
    assert torch.equal(task.evaluate_batch(model, batch)[0], expected)


def test_two_views_have_the_weight_of_the_paper_by_default():
    batch = two_views_of_noise()
    model = small_model(1)
    default = build_task().loss(model, batch)
    torch.testing.assert_close(default, build_task(consistency=0.2).loss(model, batch))
    assert default != build_task(consistency=0.0).loss(model, batch)


def test_a_negative_weight_of_consistency_is_refused():
    with pytest.raises(UserError, match=r"consistency=-1\.0 must be at least 0"):
        build_task(consistency=-1.0)


def test_second_view_has_other_masks_and_changes_nothing_of_the_first():
    config = LoaderConfig(snr=[10.0, 20.0], time_masks=2)
    one = sample_augmentation(config, 3, 5, [1.0] * 50)
    two = sample_augmentation(config, 3, 5, [1.0] * 50, two_views=True)
    for name in ("speed", "snr", "noise_seeds", "spans"):
        assert (getattr(two, name) == getattr(one, name)).all(), name
    assert one.other_spans is None
    assert two.other_spans.shape == two.spans.shape
    # a mask of time stays one
    assert (two.other_spans[:, :2, 2:] == [0, 1]).all()
    assert (two.other_spans[:, :2, 1] != two.spans[:, :2, 1]).all()


def test_training_batches_of_two_views_are_those_of_one_with_other_masks(tmp_path):
    write_corpus(tmp_path)
    dataset = Manifest("train", 0, root=str(tmp_path))
    tokenizer = dataset.build_tokenizer()
    config = LoaderConfig(time_masks=2)
    _, _, one = next(Loader(dataset, tokenizer, config=config).train_batches())
    loader = Loader(dataset, tokenizer, config=config, two_views=True)
    _, _, two = next(loader.train_batches())
    assert one.other_spans is None
    assert two.other_spans.shape == two.spans.shape
    for name, tensor in one.tensors.items():
        assert torch.equal(two.tensors[name], tensor), name
    # the rows of a share have their own masks in both views
    assert torch.equal(two.shard(1, 2).other_spans, two.other_spans[1::2])
    assert next(loader.eval_batches()).other_spans is None


def test_loss_of_an_intermediate_layer_is_that_of_its_scores():
    batch = two_views_of_noise()
    model = small_model(3)
    # the model that ends with the second layer
    shorter = Model(model.frontend, list(model.layers)[:2], model.norm, 8, 3)
    shorter.score = model.score
    plain = build_task(consistency=0.0)
    last = plain.loss(model, batch)
    expected = 0.6 * last + 0.4 * plain.loss(shorter, batch)
    task = build_task(consistency=0.0, intermediate_layer=2, intermediate_weight=0.4)
    loss = task.loss(model, batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients_of(loss, model), gradients_of(expected, model))
    # an evaluation is that of the last layer
    torch.testing.assert_close(task.evaluate_batch(model, batch)[0], last)


def test_views_and_an_intermediate_layer_are_trained_in_one_pass():
    batch = two_views_of_noise()
    model = small_model(3)
    shorter = Model(model.frontend, list(model.layers)[:1], model.norm, 8, 3)
    shorter.score = model.score
    both_views = build_task(consistency=0.3).loss(model, batch)
    plain = build_task(consistency=0.0)
    middle = plain.loss(shorter, batch)
    batch.spans, batch.other_spans = batch.other_spans, batch.spans
    middle = (middle + plain.loss(shorter, batch)) / 2
    batch.spans, batch.other_spans = batch.other_spans, batch.spans
    task = build_task(consistency=0.3, intermediate_layer=1)
    torch.testing.assert_close(task.loss(model, batch), 0.7 * both_views + 0.3 * middle)


def test_a_layer_that_is_not_an_earlier_one_is_refused():
    model = small_model(2)
    batch = two_views_of_noise()
    for number in (0, 2):
        with pytest.raises(ValueError, match=f"scored_layer={number} is no earlier one of 2"):
            model(batch.inputs, batch.lengths, scored_layer=number)
