"""The refiner alone, and in the block that wears it."""

import pytest
import torch
from torch.testing import assert_close

from famx.attention._q_learning import LEVELS, SHIFTS, Refiner
from famx.contracts.attention import D, H
from famx.registry import build


def test_the_table_follows_the_rule_of_q_learning():
    refiner, table, state, action, usual = (
        Refiner(0.3, 0.8, 0.5, 0.1),
        torch.zeros(2 * LEVELS, len(SHIFTS)),
        0,
        2,
        None,
    )
    for step in range(40):
        logits = 2 * torch.randn(3, 4)
        assert_close(refiner(logits), logits + SHIFTS[action])
        share, loss = (
            (logits + SHIFTS[action]).sigmoid().mean().item(),
            2 + torch.randn(()).item() / 2,
        )
        usual = loss if usual is None else usual
        to = min(int(share * LEVELS), LEVELS - 1) + LEVELS * (loss > usual)
        reward = (usual - loss) / usual - 0.1 * share
        table[state, action] += 0.3 * (reward + 0.8 * table[to].max() - table[state, action])
        refiner.after_step(torch.tensor(loss))
        assert_close(refiner.table, table, msg=f"step {step}")
        state, action, usual = to, refiner.action.item(), 0.99 * usual + 0.01 * loss


def test_it_finds_the_action_that_lowers_the_loss():
    refiner, best = Refiner(cost=0.0, gamma=0.0, epsilon=0.3), 4
    for _ in range(400):
        refiner(torch.zeros(5))
        refiner.after_step(1 - 0.5 * (refiner.action[0] == best) + 0.01 * torch.rand(()))
    assert_close(refiner.eval()(torch.zeros(5)), torch.full((5,), SHIFTS[best]))


def test_cost_alone_makes_spans_short():
    refiner = Refiner(cost=1.0, gamma=0.0, epsilon=0.3)
    for _ in range(400):
        refiner(torch.zeros(5))
        refiner.after_step(torch.tensor(1.0))
    assert refiner.eval()(torch.zeros(5))[0] == min(SHIFTS)


@pytest.mark.parametrize("loss", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_teaches_nothing(loss):
    refiner = Refiner()
    refiner(torch.zeros(5))
    refiner.after_step(torch.tensor(1.0))
    before = refiner.table.clone(), refiner.usual_loss.clone()
    refiner(torch.zeros(5))
    refiner.after_step(torch.tensor(loss))
    assert refiner.table.isfinite().all()
    assert_close(refiner.usual_loss, before[1])


def test_a_step_counts_all_its_calls_and_no_padding():
    whole, parts, logits = Refiner(cost=1.0), Refiner(cost=1.0), torch.randn(5, 4)
    whole(logits)
    parts(logits[:3])
    parts(
        torch.cat((logits[3:], torch.full((7, 4), 9.0))), real=1.0 * (torch.arange(9) < 2)[:, None]
    )
    for refiner in (whole, parts):
        refiner.after_step(torch.tensor(2.0))
        assert_close(refiner.table[0, 2], -refiner.alpha * logits.sigmoid().mean())
    assert torch.equal(whole.state, parts.state)


def test_evaluation_learns_nothing_and_what_is_learned_is_saved():
    refiner = Refiner(epsilon=1.0)
    for _ in range(20):
        refiner(torch.randn(5))
        refiner.after_step(torch.rand(()))
    other = Refiner()
    other.load_state_dict(refiner.state_dict())
    x, before = torch.randn(5), refiner.table.clone()
    assert_close(other.eval()(x), refiner.eval()(x))
    refiner.after_step(torch.tensor(9.0))
    assert_close(refiner.table, before)


def integrated(**hyper):
    rotary = build("rotary", {"name": "rope"}, head_dim=D // H)
    return build(
        "attention",
        {"name": "integrated", **hyper},
        d_model=D,
        n_heads=H,
        rotary=rotary,
        causal=True,
    )


def test_integrated_is_its_near_part_beside_its_far_part():
    block, x = integrated(max_span=3, ramp=2).eval(), torch.randn(2, 9, D)
    with torch.no_grad():
        block.merge.weight.copy_(torch.cat((torch.eye(D), 2 * torch.eye(D)), 1))
        block.merge.bias.zero_()
        assert_close(block(x), block.near(x) + 2 * block.far(x))
        assert_close(block(x, x[:, :4]), block.far(x, x[:, :4]))


def test_integrated_shows_the_near_part_what_the_refiner_chose():
    block, x = integrated(max_span=20, ramp=1), torch.randn(2, 40, D)
    refiner, block.near.observed = block.near.span[1], True
    spans = []
    for action in range(len(SHIFTS)):
        refiner.action.fill_(action)
        block(x)
        spans.append(block.near.metrics["span"].mean())
    assert spans == sorted(spans) and spans[-1] > spans[0] + 5
    block.train()(x)
    block.eval()(x)
    refiner.after_step(torch.tensor(1.0))
    assert refiner.table.any(), "feedback after training and evaluation teaches nothing"


def test_integrated_tells_its_refiner_what_is_padding():
    block, x = integrated(cost=1.0), torch.randn(2, 9, D)
    refiner = block.near.span[1]
    block(x, mask=torch.arange(9) < torch.tensor([9, 4])[:, None, None, None])
    refiner.after_step(torch.tensor(2.0))
    share = block.near.span[0](torch.cat((x[0], x[1, :4]))).sigmoid().mean()
    assert_close(refiner.table[0, 2], -refiner.alpha * share)
