"""Guarantees of every optimizer: it descends, resumes exactly, and changes nothing else."""

from typing import Any

import torch
from torch import Tensor, nn

from famx.contracts import Contract, ContractError, require
from famx.contracts import _steps as steps
from famx.contracts._optim_state import (
    copy_takes_the_same_steps,
    keeps_plain_state,
    non_finite,
    state_round_trip,
)
from famx.nn.hooks import Observed
from famx.registry import hyperparameters


def descends_on_a_quadratic(part: type) -> None:
    target = torch.linspace(-1, 1, 300).view(20, 15)
    # a step in units of the size of the parameter has to grow from zero first
    steps.require_descent(
        part, [torch.zeros(20, 15)], lambda p: (p[0] - target).square().sum(), 0.05, steps=200
    )


def descends_in_a_narrow_valley(part: type) -> None:
    scale = torch.logspace(0, 2, 20)
    steps.require_descent(part, [torch.ones(20)], lambda p: (scale * p[0].square()).sum(), 0.1)


def descends_on_a_logistic_regression(part: type) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 10, generator=generator)
    y = (x.sum(1) > 0).float()
    loss = nn.functional.binary_cross_entropy_with_logits
    start = [torch.zeros(10), torch.zeros(())]
    steps.require_descent(part, start, lambda p: loss(x @ p[0] + p[1], y), 0.5)


def descends_on_a_network(part: type) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 2, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long()
    loss = nn.functional.cross_entropy
    shapes = ((2, 32), (32,), (32, 2), (2,))
    start = [torch.randn(shape, generator=generator) / 2 for shape in shapes]
    steps.require_descent(
        part, start, lambda p: loss((x @ p[0] + p[1]).tanh() @ p[2] + p[3], y), 0.6
    )


def takes_tensors_of_any_shape(part: type) -> None:
    params = steps.make_parameters()
    before = steps.make_parameters()
    steps.take_steps(steps.build(part, params, lr=0.1), params)
    for p, initial in zip(params, before, strict=True):
        require(
            not torch.equal(p, initial),
            f"a parameter of shape {tuple(p.shape)} has not moved in {steps.STEPS} steps",
        )


def takes_gradients_in_any_memory_order(part: type) -> None:
    gradients = list(steps.random_gradients(6))
    # the same values, columns first
    transposed = []
    for row in gradients:
        transposed.append([g.t().contiguous().t() if g.ndim == 2 else g for g in row])
    params = steps.make_parameters()
    steps.take_steps(steps.build(part, params, lr=0.1), params, gradients)
    copies = steps.make_parameters()
    steps.take_steps(steps.build(part, copies, lr=0.1), copies, transposed)
    for p, q in zip(params, copies, strict=True):
        require(
            torch.allclose(p, q, atol=1e-5),
            f"the memory order of a gradient of shape {tuple(p.shape)} changes the step",
        )


def takes_parameters_in_any_memory_order(part: type) -> None:
    # in double precision, where sums in two orders round to nearly the same
    values = torch.linspace(-1, 1, 600, dtype=torch.float64).view(20, 30)
    param = nn.Parameter(values.clone())
    sliced = nn.Parameter(torch.cat([values, values], 1)[:, :30])
    for p in (param, sliced):
        optimizer = steps.build(part, [p], lr=0.1)
        for _ in range(6):
            optimizer.zero_grad()
            p.square().sum().backward()
            optimizer.step()
    steps.require_finite_parameters([param, sliced])
    require(
        torch.allclose(param, sliced, atol=1e-6),
        "a parameter that is a slice of a larger tensor moves differently",
    )


def takes_half_precision(part: type) -> None:
    params = [nn.Parameter(p.detach().bfloat16()) for p in steps.make_parameters()]
    before = [p.detach().clone() for p in params]
    without_gradient = nn.Parameter(torch.ones(5))
    groups = [{"params": params[:3]}, {"params": [*params[3:], without_gradient]}]
    steps.take_steps(steps.build(part, groups, lr=0.1), params)
    for p, initial in zip(params, before, strict=True):
        require(p.dtype is torch.bfloat16, f"turns a parameter of torch.bfloat16 into {p.dtype}")
        require(
            not torch.equal(p, initial),
            f"a bfloat16 parameter of shape {tuple(p.shape)} has not moved",
        )


def leaves_parameters_without_gradient_alone(part: type) -> None:
    params = steps.make_parameters()
    optimizer = steps.build(part, [{"params": params, "weight_decay": 0.1}], lr=0.1)
    for step, gradients in enumerate(steps.random_gradients()):
        steps.set_gradients(params, gradients)
        absent = params[step % 3 :: 3]
        for p in absent:
            p.grad = None
        before = [p.detach().clone() for p in absent]
        optimizer.step()
        steps.require_finite_parameters(params)
        require(
            steps.all_equal(before, absent),
            f"moves a parameter that has no gradient at step {step}",
        )
    for p in params:
        p.grad = None
    optimizer.step()


def leaves_gradients_alone(part: type) -> None:
    params = steps.make_parameters()
    optimizer = steps.build(part, [{"params": params, "weight_decay": 0.1}], lr=0.1)
    for gradients in steps.random_gradients():
        steps.set_gradients(params, gradients)
        before = [(g, g.clone(), g._version) for g in gradients]
        optimizer.step()
        for p, (gradient, values, version) in zip(params, before, strict=True):
            same = torch.equal(gradient, values) and gradient._version == version
            require(
                p.grad is gradient and same,
                f"writes into the gradient of a parameter of shape {tuple(p.shape)}",
            )


def leaves_the_global_generator_alone(part: type) -> None:
    params = steps.make_parameters()
    before = torch.get_rng_state()
    steps.take_steps(steps.build(part, params, lr=0.1), params)
    require(torch.equal(before, torch.get_rng_state()), "draws from the global generator")


def obeys_parameter_groups(part: type) -> None:
    params = steps.make_parameters()
    before = steps.make_parameters()
    groups = [{"params": params[:3], "lr": 0.0}, {"params": params[3:]}]
    steps.take_steps(steps.build(part, groups, lr=0.1), params, list(steps.random_gradients(9)))
    moved = [not torch.equal(p, initial) for p, initial in zip(params, before, strict=True)]
    require(
        moved == [False] * 3 + [True] * 3,
        f"lr=0 for the first three of six parameters, but these move: {moved}",
    )


def decays_the_weights(part: type) -> None:
    """Its hyperparameter `weight_decay`, if it has one, acts; that of a group overrides it."""
    if "weight_decay" not in hyperparameters(part):
        return

    def parameters_after(decay: float, **options: float) -> list[nn.Parameter]:
        params = steps.make_parameters()
        groups = [{"params": params[:3], **options}, {"params": params[3:]}]
        optimizer = steps.build(part, groups, lr=0.1, weight_decay=decay)
        steps.take_steps(optimizer, params, list(steps.random_gradients(9)))
        return params

    plain = parameters_after(0.0)
    decayed = parameters_after(0.1)
    mixed = parameters_after(0.1, weight_decay=0.0)
    require(not steps.all_equal(plain, decayed), "weight_decay=0.1 changes nothing")
    for p, expected in zip(mixed, [*plain[:3], *decayed[3:]], strict=True):
        require(
            torch.allclose(p, expected, atol=1e-6),
            "weight_decay=0.1 overrides the weight_decay=0 of a group",
        )


def takes_the_learning_rate_as_a_tensor(part: type) -> None:
    def parameters_after(lr: float | Tensor) -> list[nn.Parameter]:
        params = steps.make_parameters()
        optimizer = steps.build(part, [{"params": params, "lr": lr}], lr=0.5)
        steps.take_steps(optimizer, params, list(steps.random_gradients(9)))
        return params

    pairs = zip(parameters_after(0.1), parameters_after(torch.tensor(0.1)), strict=True)
    for p, q in pairs:
        require(
            torch.allclose(p, q, atol=1e-6),
            f"lr as a tensor takes another step, shape {tuple(p.shape)}",
        )


def follows_a_schedule(part: type) -> None:
    params = steps.make_parameters()
    optimizer = steps.build(part, params, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 5))
    for gradients in steps.random_gradients(9):
        before = [p.detach().clone() for p in params]
        lr = optimizer.param_groups[0]["lr"]
        steps.take_steps(optimizer, params, [gradients])
        schedule.step()
        moves = not steps.all_equal(before, params)
        require(
            moves == (lr > 0), f"{'moves' if moves else 'does not move'} at a learning rate of {lr}"
        )


def returns_the_loss_of_a_closure(part: type) -> None:
    params = [nn.Parameter(torch.ones(3))]
    optimizer = steps.build(part, params, lr=0.1)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss.detach()

    losses = [optimizer.step(closure) for _ in range(3)]
    require(
        isinstance(losses[0], Tensor | float), f"step(closure) returns {losses[0]}, not the loss"
    )
    require(losses[0] == 3 and losses[-1] < 3, f"step(closure) returned the losses {losses}")


def watching_changes_nothing(part: type) -> None:
    params = steps.make_parameters()
    optimizer = steps.build(part, params, lr=0.1)
    steps.take_steps(optimizer, params)
    observed_params = steps.make_parameters()
    observed = steps.build(part, observed_params, lr=0.1)
    if isinstance(observed, Observed):
        observed.observed = True
    steps.take_steps(observed, observed_params)
    require(steps.all_equal(params, observed_params), "takes other steps when it is observed")
    if isinstance(observed, Observed):
        for name, value in observed.metrics.items():
            is_finite = isinstance(value, Tensor) and value.isfinite().all()
            require(is_finite, f"the metric {name} is {value}")
    if isinstance(optimizer, Observed):
        names = sorted(optimizer.metrics)
        require(not names, f"fills the metrics {names} though it is not observed")


def refuses_sparse_gradients(part: type) -> None:
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = steps.build(part, table.parameters(), lr=0.1)
    table(torch.tensor([1])).sum().backward()
    try:
        optimizer.step()
    except (RuntimeError, ValueError):
        return
    raise ContractError("accepts a sparse gradient without an error")


def meta(part: type) -> None:
    """Steps on meta tensors, which have shapes but no values."""
    # every second shape, since on meta each operation is slow
    params = [nn.Parameter(p.to("meta")) for p in steps.make_parameters()[1::2]]
    gradients = [[g.to("meta") for g in row[1::2]] for row in steps.random_gradients()]
    steps.take_steps(steps.build(part, params, lr=0.1), params, gradients)


def no_host_read(part: type) -> None:
    """A step reads no tensor on the host, which would wait for the device."""
    params = steps.make_parameters()
    optimizer = steps.build(part, params, lr=0.1)
    for gradients in steps.random_gradients():
        steps.set_gradients(params, gradients)
        with steps.HostReads() as reads:
            optimizer.step()
        require(not reads.operations, f"waits for the device in step(): {reads.operations[:1]}")


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
    copy_takes_the_same_steps,
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
