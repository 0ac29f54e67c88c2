"""A record shows what any optimizer did, in a loop of one's own."""

import pytest
import torch
from pyarrow import parquet
from torch import nn

from famx.monitoring.optimizer_record import OptimizerRecord
from famx.monitoring.spectrum_log import read_decisions
from famx.optim import FAM, Lookahead, parameter_groups


def train(optimizer: torch.optim.Optimizer, net: nn.Module, steps: int) -> None:
    """Takes steps on gradients with a constant part."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for p in net.parameters():
            p.grad = 1 + torch.randn(p.shape, generator=generator)
        optimizer.step()


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(30, 20), nn.Linear(20, 30))


def test_record_of_fam_has_the_bands_and_what_fired_for_each_tensor(tmp_path):
    net = small_net()
    optimizer = FAM(parameter_groups(net), lr=1e-3, fam_start_step=40)
    with OptimizerRecord(net, optimizer, tmp_path / "fam.parquet", every=40):
        train(optimizer, net, 80)
    train(optimizer, net, 40)
    decisions = read_decisions(tmp_path / "fam.parquet")
    assert [d.step for d in decisions] == [40] * 3 + [80] * 3
    by_name = {d.tensor: d for d in decisions if d.step == 80}
    assert set(by_name) == {"0.weight", "1.weight", "1.bias"}
    # the slowest band lowers the momentum
    weight = by_name["1.weight"]
    assert weight.kind == "other"
    assert max(weight.bands, key=weight.bands.get) == "32+"
    assert weight.fired
    assert weight.coefficient == pytest.approx(0.95 * weight.base)
    # what the rule does not measure, or not yet
    assert not by_name["1.bias"].fired
    assert by_name["1.bias"].bands == {}
    assert not any(d.fired or d.bands for d in decisions if d.step == 40)


def test_record_changes_no_weight(tmp_path):
    weights = []
    for is_recorded in (False, True):
        net = small_net()
        optimizer = FAM(parameter_groups(net), lr=1e-3, fam_start_step=40)
        if is_recorded:
            with OptimizerRecord(net, optimizer, tmp_path / "fam.parquet", every=40):
                train(optimizer, net, 80)
        else:
            train(optimizer, net, 80)
        weights.append(net[1].weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize("of_torch", [True, False])
def test_record_is_of_any_optimizer_and_of_steps_with_a_closure(tmp_path, of_torch):
    net = small_net()
    if of_torch:
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    else:
        optimizer = Lookahead(FAM(parameter_groups(net), lr=1e-3))

    def closure():
        optimizer.zero_grad()
        loss = net(torch.arange(30)).square().sum()
        loss.backward()
        return loss

    file = tmp_path / "record.parquet"
    with OptimizerRecord(net, optimizer, file, every=33):
        for _ in range(33):
            optimizer.step(closure)
    rows = parquet.read_table(file).to_pylist()
    norms = {row["tensor"]: row["gradient_norm"] for row in rows}
    for name, p in net.named_parameters():
        assert norms[name] == pytest.approx(p.grad.norm().item())
    assert ("fired" in rows[0]) != of_torch


def test_record_is_written_after_an_error(tmp_path):
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    record = OptimizerRecord(net, optimizer, tmp_path / "record.parquet", every=32)
    with pytest.raises(KeyboardInterrupt), record:
        train(optimizer, net, 33)
        raise KeyboardInterrupt
    assert parquet.read_table(tmp_path / "record.parquet")["step"].to_pylist() == [32] * 3
    # the optimizer is not measured any more
    train(optimizer, net, 1)


def test_record_of_no_steps_is_refused():
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="every=0 must be at least 1"):
        OptimizerRecord(net, optimizer, "record.parquet", every=0)
