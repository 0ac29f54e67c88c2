"""What every optimizer promises to any PyTorch loop: it descends, resumes exactly, and spares what is not its own."""

import copy
import io

import torch
from torch import Tensor, nn

from famx.contracts import Contract, ContractError, require
from famx.contracts import _steps as steps
from famx.registry import hyperparameters


def descends_on_a_quadratic(part: type) -> None:
    target = torch.linspace(-1, 1, 300).view(20, 15)
    # a step relative to the size of the parameter has to grow from nothing first
    steps.descends(
        part, [torch.zeros(20, 15)], lambda p: (p[0] - target).square().sum(), 0.05, steps=200
    )


def descends_in_a_narrow_valley(part: type) -> None:
    scale = torch.logspace(0, 2, 20)
    steps.descends(part, [torch.ones(20)], lambda p: (scale * p[0].square()).sum(), 0.1)


def descends_on_a_logistic_regression(part: type) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 10, generator=generator)
    y = (x.sum(1) > 0).float()
    loss = nn.functional.binary_cross_entropy_with_logits
    steps.descends(
        part, [torch.zeros(10), torch.zeros(())], lambda p: loss(x @ p[0] + p[1], y), 0.5
    )


def descends_on_a_network(part: type) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 2, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long()
    start = [
        torch.randn(shape, generator=generator) / 2 for shape in ((2, 32), (32,), (32, 2), (2,))
    ]
    steps.descends(
        part,
        start,
        lambda p: nn.functional.cross_entropy((x @ p[0] + p[1]).tanh() @ p[2] + p[3], y),
        0.6,
    )


def takes_tensors_of_any_shape(part: type) -> None:
    params, before = steps.parameters(), steps.parameters()
    steps.take(steps.over(part, params, lr=0.1), params)
    for p, was in zip(params, before, strict=True):
        require(
            not torch.equal(p, was),
            f"a parameter of shape {tuple(p.shape)} has not moved in {steps.STEPS} steps",
        )


def takes_gradients_in_any_memory_order(part: type) -> None:
    params, others = steps.parameters(), steps.parameters()
    rows = list(steps.noise(6))
    turned = [
        [g.t().contiguous().t() if g.ndim == 2 else g for g in gradients] for gradients in rows
    ]
    steps.take(steps.over(part, params, lr=0.1), params, rows)
    steps.take(steps.over(part, others, lr=0.1), others, turned)
    for p, o in zip(params, others, strict=True):
        require(
            torch.allclose(p, o, atol=1e-5),
            f"the memory order of a gradient of shape {tuple(p.shape)} changes the step",
        )


def takes_parameters_in_any_memory_order(part: type) -> None:
    # in double precision, where two orders of the same sums round alike
    whole = torch.linspace(-1, 1, 600, dtype=torch.float64).view(20, 30)
    params, others = (
        [nn.Parameter(whole.clone())],
        [nn.Parameter(torch.cat([whole, whole], 1)[:, :30])],
    )
    optimizer, other = steps.over(part, params, lr=0.1), steps.over(part, others, lr=0.1)
    for _ in range(6):
        for p, taker in ((params[0], optimizer), (others[0], other)):
            taker.zero_grad()
            p.square().sum().backward()
            taker.step()
    steps.finite([*params, *others])
    require(
        torch.allclose(params[0], others[0], atol=1e-6),
        "a parameter that is a slice of a larger tensor moves differently",
    )


def takes_half_precision(part: type) -> None:
    params = [nn.Parameter(p.detach().bfloat16()) for p in steps.parameters()]
    before = [p.detach().clone() for p in params]
    groups = [{"params": params[:3]}, {"params": [*params[3:], nn.Parameter(torch.ones(5))]}]
    steps.take(steps.over(part, groups, lr=0.1), params)
    for p, was in zip(params, before, strict=True):
        require(p.dtype is torch.bfloat16, f"turns a parameter of torch.bfloat16 into {p.dtype}")
        require(
            not torch.equal(p, was), f"a bfloat16 parameter of shape {tuple(p.shape)} has not moved"
        )


def leaves_parameters_without_gradient_alone(part: type) -> None:
    params = steps.parameters()
    optimizer = steps.over(part, [{"params": params, "weight_decay": 0.1}], lr=0.1)
    for step, gradients in enumerate(steps.noise()):
        steps.give(params, gradients)
        absent = params[step % 3 :: 3]
        for p in absent:
            p.grad = None
        before = [p.detach().clone() for p in absent]
        optimizer.step()
        steps.finite(params)
        require(
            all(map(torch.equal, before, absent)),
            f"moves a parameter that has no gradient at step {step}",
        )
    for p in params:
        p.grad = None
    optimizer.step()


def leaves_gradients_alone(part: type) -> None:
    params = steps.parameters()
    optimizer = steps.over(part, [{"params": params, "weight_decay": 0.1}], lr=0.1)
    for gradients in steps.noise():
        steps.give(params, gradients)
        kept = [(p.grad, p.grad.clone(), p.grad._version) for p in params]
        optimizer.step()
        for p, (grad, whole, version) in zip(params, kept, strict=True):
            same = p.grad is grad and torch.equal(grad, whole) and grad._version == version
            require(same, f"writes into the gradient of a parameter of shape {tuple(p.shape)}")


def leaves_the_global_generator_alone(part: type) -> None:
    params, before = steps.parameters(), torch.get_rng_state()
    steps.take(steps.over(part, params, lr=0.1), params)
    require(torch.equal(before, torch.get_rng_state()), "draws from the global generator")


def state_round_trip(part: type) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        params = [nn.Parameter(p.detach().to(dtype)) for p in steps.parameters()]
        optimizer, gradients = steps.over(part, params, lr=0.1), list(steps.noise())
        steps.take(optimizer, params, gradients[:-13])
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        copies = [nn.Parameter(p.detach().clone()) for p in params]
        other = steps.over(part, copies, lr=0.5)
        other.load_state_dict(torch.load(file, weights_only=True))
        for (path, kept), (_, loaded) in zip(
            steps.tensors(optimizer), steps.tensors(other), strict=True
        ):
            require(
                kept.dtype is loaded.dtype, f"loads {path} as {loaded.dtype}, it was {kept.dtype}"
            )
            require(torch.equal(kept, loaded), f"loads another {path} than it saved")
        steps.take(optimizer, params, gradients[-13:])
        steps.take(other, copies, gradients[-13:])
        for p, other in zip(params, copies, strict=True):
            require(
                torch.equal(p, other),
                f"goes on differently with its state: {dtype}, shape {tuple(p.shape)}",
            )


def its_copy_goes_on_alike(part: type) -> None:
    params, gradients = steps.parameters(), list(steps.noise(12))
    optimizer = steps.over(part, params, lr=0.1)
    steps.take(optimizer, params, gradients[:6])
    other, copies = copy.deepcopy((optimizer, params))
    steps.take(optimizer, params, gradients[6:])
    steps.take(other, copies, gradients[6:])
    require(all(map(torch.equal, params, copies)), "a copy of it goes on differently")


def keeps_plain_state(part: type) -> None:
    params = steps.parameters()
    optimizer = steps.over(part, params, lr=0.1)
    steps.take(optimizer, params, list(steps.noise(3)))
    for path, value in steps.leaves(optimizer.state_dict(), "state_dict"):
        plain = value is None or isinstance(value, Tensor | bool | int | float | str)
        require(
            plain, f"{path} is a {type(value).__name__}: neither a tensor nor a number nor a word"
        )


def obeys_parameter_groups(part: type) -> None:
    params, before = steps.parameters(), steps.parameters()
    groups = [{"params": params[:3], "lr": 0.0}, {"params": params[3:]}]
    steps.take(steps.over(part, groups, lr=0.1), params, list(steps.noise(9)))
    moved = [not torch.equal(p, was) for p, was in zip(params, before, strict=True)]
    require(
        moved == [False] * 3 + [True] * 3,
        f"lr=0 for the first three of six parameters, but these move: {moved}",
    )


def decays_the_weights(part: type) -> None:
    """By its hyperparameter `weight_decay`, if it has one; a group's own goes before it."""
    if "weight_decay" not in hyperparameters(part):
        return

    def moved(decay: float, **own: float) -> list[nn.Parameter]:
        params = steps.parameters()
        groups = [{"params": params[:3], **own}, {"params": params[3:]}]
        steps.take(
            steps.over(part, groups, lr=0.1, weight_decay=decay), params, list(steps.noise(9))
        )
        return params

    plain, decayed, mixed = moved(0.0), moved(0.1), moved(0.1, weight_decay=0.0)
    require(not all(map(torch.equal, plain, decayed)), "weight_decay=0.1 changes nothing")
    for p, wanted in zip(mixed, [*plain[:3], *decayed[3:]], strict=True):
        require(
            torch.allclose(p, wanted, atol=1e-6),
            "weight_decay=0.1 goes before the weight_decay=0 of a group",
        )


def takes_the_learning_rate_as_a_tensor(part: type) -> None:
    params, others = steps.parameters(), steps.parameters()
    steps.take(
        steps.over(part, [{"params": params, "lr": 0.1}], lr=0.5), params, list(steps.noise(9))
    )
    steps.take(
        steps.over(part, [{"params": others, "lr": torch.tensor(0.1)}], lr=0.5),
        others,
        list(steps.noise(9)),
    )
    for p, other in zip(params, others, strict=True):
        require(
            torch.allclose(p, other, atol=1e-6),
            f"lr as a tensor takes another step, shape {tuple(p.shape)}",
        )


def follows_a_schedule(part: type) -> None:
    params = steps.parameters()
    optimizer = steps.over(part, params, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 5))
    for gradients in steps.noise(9):
        before = [p.detach().clone() for p in params]
        lr = optimizer.param_groups[0]["lr"]
        steps.take(optimizer, params, [gradients])
        schedule.step()
        moves = not all(map(torch.equal, before, params))
        require(moves == (lr > 0), f"{'moves' if moves else 'stays'} at a learning rate of {lr}")


def returns_the_loss_of_a_closure(part: type) -> None:
    params = [nn.Parameter(torch.ones(3))]
    optimizer = steps.over(part, params, lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure) for _ in range(3)]
    require(
        isinstance(losses[0], Tensor | float), f"step(closure) returns {losses[0]}, not the loss"
    )
    require(
        losses[0] == 3 and losses[-1] < 3,
        f"step(closure) returned the losses {[float(loss) for loss in losses]}",
    )


def watching_changes_nothing(part: type) -> None:
    params, watched = steps.parameters(), steps.parameters()
    optimizer, observed = steps.over(part, params, lr=0.1), steps.over(part, watched, lr=0.1)
    observed.observed = True
    steps.take(optimizer, params)
    steps.take(observed, watched)
    require(all(map(torch.equal, params, watched)), "takes other steps when it is watched")
    for name, value in getattr(observed, "metrics", {}).items():
        require(isinstance(value, Tensor) and value.isfinite().all(), f"shows {value} as {name}")
    unseen = sorted(getattr(optimizer, "metrics", {}))
    require(not unseen, f"fills {unseen} though nobody watches")


def refuses_sparse_gradients(part: type) -> None:
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = steps.over(part, table.parameters(), lr=0.1)
    table(torch.tensor([1])).sum().backward()
    try:
        optimizer.step()
    except (RuntimeError, ValueError):
        return
    raise ContractError("takes a sparse gradient without a word")


def non_finite(part: type) -> None:
    params = steps.parameters()
    optimizer = steps.over(part, [{"params": params, "weight_decay": 0.1}], lr=0.1)
    for step, gradients in enumerate(steps.noise()):
        if step in (0, 40, 110):
            for bad, shape in ((float("nan"), 0), (float("inf"), 3), (-float("inf"), 5)):
                spoilt = [g.clone() for g in gradients]
                spoilt[shape].view(-1)[-1] = bad
                before = [p.detach().clone() for p in params]
                kept, skipped = dict(steps.copies(optimizer)), int(getattr(optimizer, "skipped", 0))
                steps.give(params, spoilt)
                optimizer.step()
                require(all(map(torch.equal, before, params)), f"steps on a gradient that is {bad}")
                for path, now in steps.copies(optimizer):
                    same = path.endswith("skipped") or torch.equal(
                        kept.get(path, torch.zeros_like(now)), now
                    )
                    require(
                        same, f"{path} changes at step {step}, which a gradient of {bad} cancels"
                    )
                counted = int(getattr(optimizer, "skipped", 0)) - skipped
                require(counted == 1, f"counts {counted or 'no'} cancelled step in `skipped`")
        steps.take(optimizer, params, [gradients])


def meta(part: type) -> None:
    # every other shape: there is nothing to compute, but each operation is looked up in Python
    params = [nn.Parameter(p.to("meta")) for p in steps.parameters()[1::2]]
    rows = [[gradient.to("meta") for gradient in row[1::2]] for row in steps.noise()]
    steps.take(steps.over(part, params, lr=0.1), params, rows)


def no_host_read(part: type) -> None:
    params = steps.parameters()
    optimizer = steps.over(part, params, lr=0.1)
    for gradients in steps.noise():
        steps.give(params, gradients)
        with steps.Reads() as reads:
            optimizer.step()
        require(not reads.found, f"waits for the device in step(): {reads.found[0]}")


CONTRACT: tuple[Contract, ...] = (
    descends_on_a_quadratic,
    descends_in_a_narrow_valley,
    descends_on_a_logistic_regression,
    descends_on_a_network,
    takes_tensors_of_any_shape,
    takes_gradients_in_any_memory_order,
    takes_parameters_in_any_memory_order,
    takes_half_precision,
    leaves_parameters_without_gradient_alone,
    leaves_gradients_alone,
    leaves_the_global_generator_alone,
    state_round_trip,
    its_copy_goes_on_alike,
    keeps_plain_state,
    obeys_parameter_groups,
    decays_the_weights,
    takes_the_learning_rate_as_a_tensor,
    follows_a_schedule,
    returns_the_loss_of_a_closure,
    watching_changes_nothing,
    refuses_sparse_gradients,
    non_finite,
    meta,
    no_host_read,
)
