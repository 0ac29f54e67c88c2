"""Batches on their way to the device, and between processes."""

import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from famx.nn.batch import Batch
from famx.notation import Modality, UserError
from famx.training.loader_config import LoaderConfig
from famx.training.prefetch import prefetch
from famx.training.reader import ReadBatch


def make_batch(rows=3, samples=64_000):
    return Batch(
        ids=[f"utterance {row}" for row in range(rows)],
        texts=["a"] * rows,
        inputs=torch.randn(rows, samples),
        lengths=torch.arange(samples - rows, samples),
        targets=torch.ones(rows, 4, dtype=torch.int64),
        target_lengths=torch.full((rows,), 4),
        spans=None,
        modality=Modality.SPEECH,
    )


def assert_equal(first, second):
    for name in ("ids", "texts", "modality", "amount", "padding", "spans"):
        assert getattr(first, name) == getattr(second, name)
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor.cpu(), getattr(second, name).cpu())


def test_batch_is_the_same_in_another_process():
    batch = make_batch()
    received = pickle.loads(ForkingPickler.dumps(batch))
    assert_equal(received, batch)
    received.lengths[0] = 7  # trainers may write into what they receive


def test_loader_pins_all_tensors_of_a_batch(monkeypatch):
    # without CUDA there is no pinned memory
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    batch = make_batch(rows=4).shard(0, 2)
    epoch, position, pinned = pin_memory(ReadBatch(3, 5, batch))
    assert (epoch, position) == (3, 5)
    assert_equal(pinned, batch)
    for name, tensor in pinned.tensors.items():
        assert tensor.is_contiguous()
        assert tensor.data_ptr() != getattr(batch, name).data_ptr()
    error = UserError("bad recording")
    assert pin_memory(ReadBatch(3, 5, error)) == (3, 5, error)


def test_copies_within_a_process_share_their_tensors():
    batch = make_batch()
    moved = batch.to("cpu")
    assert moved is not batch
    for name, tensor in batch.tensors.items():
        assert getattr(moved, name) is tensor


def test_batches_pass_through_on_a_cpu():
    steps = [(0, position, make_batch()) for position in range(3)]
    read = []

    def loader():
        for step in steps:
            read.append(step[:2])
            yield step

    prefetched = prefetch(loader(), torch.device("cpu"), lambda batch: batch.shard(1, 2))
    for number, step in enumerate(prefetched):
        # nothing is read ahead
        assert len(read) == number + 1
        epoch, position, batch = steps[number]
        assert (step.epoch, step.position) == (epoch, position)
        assert step.batch is batch
        assert step.share.ids == batch.ids[1::2]
        assert_equal(step.on_device, step.share)
        assert step.on_device.inputs.data_ptr() == batch.inputs[1].data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_arrive_on_the_device_while_it_computes(world_size):
    device = torch.device("cuda")
    steps = [(0, position, make_batch(rows=4).pin_memory()) for position in range(6)]
    factor = torch.randn(2048, 2048, device=device) / 2048
    sums = []
    for step in prefetch(iter(steps), device, lambda batch: batch.shard(0, world_size)):
        # the device is busy when the next copies are enqueued
        for _ in range(20):
            factor = factor @ factor
        sums.append(step.on_device.inputs.double().sum())
        assert step.share.inputs.is_pinned()
        del step
    for (_, _, batch), total in zip(steps, sums, strict=True):
        expected = batch.inputs[::world_size].double().sum()
        assert total.item() == pytest.approx(expected.item())


def test_workers_are_started_by_default_on_cuda_alone(monkeypatch):
    monkeypatch.setattr("famx.training.loader_config.n_cores", lambda: 6)
    assert LoaderConfig().n_workers(torch.device("cpu")) == 0
    assert LoaderConfig().n_workers(torch.device("cuda")) == 5
    assert LoaderConfig(workers=0).n_workers(torch.device("cuda")) == 0
    assert LoaderConfig(workers=3).n_workers(torch.device("cpu")) == 3
    # two processes of torchrun share the cores
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert LoaderConfig().n_workers(torch.device("cuda")) == 2
    monkeypatch.setattr("famx.training.loader_config.n_cores", lambda: 64)
    assert LoaderConfig().n_workers(torch.device("cuda")) == 8
