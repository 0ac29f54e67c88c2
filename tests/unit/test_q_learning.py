"""The refiner of spans, alone and in the block that uses it."""

import pytest
import torch
from attention_blocks import build_block
from torch.testing import assert_close

from famx.attention._q_learning import LEVELS, SHIFTS, Refiner
from famx.contracts.attention import D


def test_the_table_follows_the_rule_of_q_learning():
    # alpha=0.3, gamma=0.8, epsilon=0.5, cost=0.1
    refiner = Refiner(0.3, 0.8, 0.5, 0.1)
    table = torch.zeros(2 * LEVELS, len(SHIFTS))
    state = 0
    action = SHIFTS.index(0.0)
    mean_loss = None
    for step in range(40):
        logits = 2 * torch.randn(3, 4)
        assert_close(refiner(logits), logits + SHIFTS[action])
        # the step by hand: the reward is a fall of the loss, less the cost of long spans
        share = (logits + SHIFTS[action]).sigmoid().mean().item()
        loss = 2 + torch.randn(()).item() / 2
        if mean_loss is None:
            mean_loss = loss
        reward = (mean_loss - loss) / mean_loss - 0.1 * share
        next_state = min(int(share * LEVELS), LEVELS - 1) + LEVELS * (loss > mean_loss)
        error = reward + 0.8 * table[next_state].max() - table[state, action]
        table[state, action] += 0.3 * error
        refiner.after_step(torch.tensor(loss))
        assert_close(refiner.table, table, msg=f"step {step}")
        # the refiner samples its next action itself
        state = next_state
        action = refiner.action.item()
        mean_loss = 0.99 * mean_loss + 0.01 * loss


def test_refiner_learns_the_action_that_lowers_the_loss():
    refiner = Refiner(cost=0.0, gamma=0.0, epsilon=0.3)
    best = 4
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
def test_a_loss_that_is_not_finite_changes_no_value_of_the_table(loss):
    refiner = Refiner()
    refiner(torch.zeros(5))
    refiner.after_step(torch.tensor(1.0))
    mean_loss = refiner.mean_loss.clone()
    refiner(torch.zeros(5))
    refiner.after_step(torch.tensor(loss))
    assert refiner.table.isfinite().all()
    assert_close(refiner.mean_loss, mean_loss)


def test_a_step_counts_all_its_calls_but_no_padding():
    one_call = Refiner(cost=1.0)
    two_calls = Refiner(cost=1.0)
    logits = torch.randn(5, 4)
    one_call(logits)
    two_calls(logits[:3])
    padded = torch.cat((logits[3:], torch.full((7, 4), 9.0)))
    two_calls(padded, real=1.0 * (torch.arange(9) < 2)[:, None])
    for refiner in (one_call, two_calls):
        refiner.after_step(torch.tensor(2.0))
        assert_close(refiner.table[0, 2], -refiner.alpha * logits.sigmoid().mean())
    assert torch.equal(one_call.state, two_calls.state)


def test_evaluation_learns_nothing_and_the_state_dict_holds_what_is_learned():
    refiner = Refiner(epsilon=1.0)
    for _ in range(20):
        refiner(torch.randn(5))
        refiner.after_step(torch.rand(()))
    loaded = Refiner()
    loaded.load_state_dict(refiner.state_dict())
    x = torch.randn(5)
    table = refiner.table.clone()
    assert_close(loaded.eval()(x), refiner.eval()(x))
    refiner.after_step(torch.tensor(9.0))
    assert_close(refiner.table, table)


def integrated(**options):
    return build_block("integrated", causal=True, **options)


def test_integrated_merges_its_near_and_far_parts():
    block = integrated(max_span=3, ramp=2).eval()
    x = torch.randn(2, 9, D)
    with torch.no_grad():
        block.merge.weight.copy_(torch.cat((torch.eye(D), 2 * torch.eye(D)), 1))
        block.merge.bias.zero_()
        assert_close(block(x), block.near(x) + 2 * block.far(x))
        assert_close(block(x, x[:, :4]), block.far(x, x[:, :4]))


def test_spans_of_integrated_grow_with_the_shift_of_the_refiner():
    block = integrated(max_span=20, ramp=1)
    block.near.observed = True
    x = torch.randn(2, 40, D)
    spans = []
    for action in range(len(SHIFTS)):
        block.near.refiner.action.fill_(action)
        block(x)
        spans.append(block.near.metrics["span"].mean())
    assert spans == sorted(spans) and spans[-1] > spans[0] + 5


def test_the_refiner_learns_from_training_calls_before_an_evaluation():
    block = integrated()
    x = torch.randn(2, 9, D)
    block.train()(x)
    block.eval()(x)
    block.near.refiner.after_step(torch.tensor(1.0))
    assert block.near.refiner.table.any()


def test_the_refiner_of_integrated_does_not_count_padding():
    block = integrated(cost=1.0)
    refiner = block.near.refiner
    x = torch.randn(2, 9, D)
    block(x, mask=torch.arange(9) < torch.tensor([9, 4])[:, None, None, None])
    refiner.after_step(torch.tensor(2.0))
    real = torch.cat((x[0], x[1, :4]))
    share = block.near.span(real).sigmoid().mean()
    assert_close(refiner.table[0, 2], -refiner.alpha * share)
