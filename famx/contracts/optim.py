"""Guarantees of every optimizer: it descends, resumes exactly, and changes nothing else."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from famx.contracts import Contract, ContractError, require
from famx.contracts import _steps as steps
from famx.contracts._optim_descent import (
    descends_in_a_narrow_valley,
    descends_on_a_logistic_regression,
    descends_on_a_network,
    descends_on_a_quadratic,
)
from famx.contracts._optim_finite import stays_finite
from famx.contracts._optim_groups import decays_the_weights, maximizes, obeys_parameter_groups
from famx.contracts._optim_state import (
    adds_groups_or_refuses_them,
    copy_takes_the_same_steps,
    distributed_checkpoint_round_trip,
    keeps_plain_state,
    matches_names,
    non_finite,
    refuses_a_parameter_that_changes,
    refuses_the_state_of_other_parameters,
    state_round_trip,
)
from famx.nn.hooks import Observed


def takes_tensors_of_any_shape(part: type[Optimizer]) -> None:
    """Parameters of 0 to 4 dimensions move."""
    params = steps.make_parameters()
    initial_params = steps.make_parameters()
    steps.take_steps(steps.build(part, params, lr=0.1), params)
    for p, initial in zip(params, initial_params, strict=True):
        require(
            not torch.equal(p, initial),
            f"a parameter of shape {tuple(p.shape)} has not moved in {steps.STEPS} steps",
        )


def takes_gradients_in_any_memory_order(part: type[Optimizer]) -> None:
    """Gradients stored by columns lead to the same parameters."""
    gradients = list(steps.random_gradients(6))
    # the same values, columns first
    by_columns = []
    for row in gradients:
        by_columns.append([_stored_by_columns(gradient) for gradient in row])
    params = steps.make_parameters()
    steps.take_steps(steps.build(part, params, lr=0.1), params, gradients)
    copies = steps.make_parameters()
    steps.take_steps(steps.build(part, copies, lr=0.1), copies, by_columns)
    # sums in another order round differently
    for p, q in zip(params, copies, strict=True):
        require(
            torch.allclose(p, q, atol=1e-5),
            f"the memory order of a gradient of shape {tuple(p.shape)} changes the step",
        )


def _stored_by_columns(gradient: Tensor) -> Tensor:
    """Returns equal values; those of a matrix are stored column by column."""
    return gradient.t().contiguous().t() if gradient.ndim == 2 else gradient


def takes_parameters_in_any_memory_order(part: type[Optimizer]) -> None:
    """A parameter that is no contiguous tensor moves the same way."""
    # in double precision, where sums in two orders round to nearly the same
    values = torch.linspace(-1, 1, 600, dtype=torch.float64).view(20, 30)
    param = nn.Parameter(values.clone())
    sliced = nn.Parameter(torch.cat([values, values], 1)[:, :30])
    # the gradient is 2 p, which has the memory order of the parameter
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


def takes_half_precision(part: type[Optimizer]) -> None:
    """Parameters in bfloat16 move, and remain in bfloat16."""
    params = [nn.Parameter(p.detach().bfloat16()) for p in steps.make_parameters()]
    initial_params = [p.detach().clone() for p in params]
    # in groups, one of which has a parameter without a gradient
    without_gradient = nn.Parameter(torch.ones(5))
    groups = [{"params": params[:3]}, {"params": [*params[3:], without_gradient]}]
    steps.take_steps(steps.build(part, groups, lr=0.1), params)
    for p, initial in zip(params, initial_params, strict=True):
        require(p.dtype is torch.bfloat16, f"turns a parameter of torch.bfloat16 into {p.dtype}")
        require(
            not torch.equal(p, initial),
            f"a bfloat16 parameter of shape {tuple(p.shape)} has not moved",
        )


def leaves_parameters_without_gradient_alone(part: type[Optimizer]) -> None:
    """A step does not move a parameter without a gradient, nor fail without any gradient."""
    params = steps.make_parameters()
    optimizer = steps.build(part, [{"params": params, "weight_decay": 0.1}], lr=0.1)
    for step, gradients in enumerate(steps.random_gradients()):
        steps.set_gradients(params, gradients)
        # every third parameter, others in each step; weight decay must not move them either
        absent = params[step % 3 :: 3]
        for p in absent:
            p.grad = None
        values = [p.detach().clone() for p in absent]
        optimizer.step()
        steps.require_finite_parameters(params)
        require(
            steps.all_equal(values, absent),
            f"moves a parameter that has no gradient at step {step}",
        )
    # a step without any gradient
    for p in params:
        p.grad = None
    optimizer.step()


def leaves_gradients_alone(part: type[Optimizer]) -> None:
    """A step neither replaces gradients nor writes into them."""
    params = steps.make_parameters()
    optimizer = steps.build(part, [{"params": params, "weight_decay": 0.1}], lr=0.1)
    for gradients in steps.random_gradients():
        steps.set_gradients(params, gradients)
        # torch counts the writes into a tensor, so one that is undone is noticed too
        versions = [(g, g.clone(), g._version) for g in gradients]
        optimizer.step()
        for p, (gradient, values, version) in zip(params, versions, strict=True):
            same = torch.equal(gradient, values) and gradient._version == version
            require(
                p.grad is gradient and same,
                f"writes into the gradient of a parameter of shape {tuple(p.shape)}",
            )


def leaves_the_global_generator_alone(part: type[Optimizer]) -> None:
    """The constructor and steps draw nothing from torch's global random generator."""
    params = steps.make_parameters()
    random_state = torch.get_rng_state()
    steps.take_steps(steps.build(part, params, lr=0.1), params)
    require(torch.equal(random_state, torch.get_rng_state()), "draws from the global generator")


def takes_the_learning_rate_as_a_tensor(part: type[Optimizer]) -> None:
    """A learning rate that is a tensor leads to the same steps as a number."""

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


def follows_a_schedule(part: type[Optimizer]) -> None:
    """A change of the learning rate by torch's scheduler acts in the next step."""
    params = steps.make_parameters()
    optimizer = steps.build(part, params, lr=0.1)
    # the full learning rate for five steps, then none
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 5))
    for gradients in steps.random_gradients(9):
        values = [p.detach().clone() for p in params]
        lr = optimizer.param_groups[0]["lr"]
        steps.take_steps(optimizer, params, [gradients])
        schedule.step()
        moves = not steps.all_equal(values, params)
        require(
            moves == (lr > 0), f"{'moves' if moves else 'does not move'} at a learning rate of {lr}"
        )


def returns_the_loss_of_a_closure(part: type[Optimizer]) -> None:
    """`step(closure)` computes the loss, descends, and returns that loss."""
    params = [nn.Parameter(torch.ones(3))]
    optimizer = steps.build(part, params, lr=0.1)

    # torch declares that a closure returns a float, but a tensor is what users return
    def closure() -> Any:
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss.detach()

    losses = [optimizer.step(closure) for _ in range(3)]
    require(
        isinstance(losses[0], Tensor | float), f"step(closure) returns {losses[0]}, not the loss"
    )
    # three squares of 1
    require(losses[0] == 3 and losses[-1] < 3, f"step(closure) returned the losses {losses}")


def observing_changes_nothing(part: type[Optimizer]) -> None:
    """Steps are the same while metrics are collected, which are finite tensors."""
    params = steps.make_parameters()
    optimizer = steps.build(part, params, lr=0.1)
    steps.take_steps(optimizer, params)
    # the same steps of an optimizer that is observed; torch's own report no metrics
    observed_params = steps.make_parameters()
    observed = steps.build(part, observed_params, lr=0.1)
    if isinstance(observed, Observed):
        observed.observed = True
    steps.take_steps(observed, observed_params)
    require(steps.all_equal(params, observed_params), "takes other steps when it is observed")
    # metrics, while it is observed and only then
    if isinstance(observed, Observed):
        for name, value in observed.metrics.items():
            is_finite = isinstance(value, Tensor) and value.isfinite().all()
            require(is_finite, f"the metric {name} is {value}")
    if isinstance(optimizer, Observed):
        names = sorted(optimizer.metrics)
        require(not names, f"fills the metrics {names} though it is not observed")


def refuses_sparse_gradients(part: type[Optimizer]) -> None:
    """A sparse gradient raises an error."""
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = steps.build(part, table.parameters(), lr=0.1)
    table(torch.tensor([1])).sum().backward()
    try:
        optimizer.step()
    except (RuntimeError, ValueError):
        return
    raise ContractError("accepts a sparse gradient without an error")


def meta(part: type[Optimizer]) -> None:
    """Steps on meta tensors, which have shapes but no values."""
    # every second shape, since on meta each operation is slow
    params = [nn.Parameter(p.to("meta")) for p in steps.make_parameters()[1::2]]
    gradients = []
    for row in steps.random_gradients():
        gradients.append([g.to("meta") for g in row[1::2]])
    steps.take_steps(steps.build(part, params, lr=0.1), params, gradients)


def no_host_read(part: type[Optimizer]) -> None:
    """A step reads no tensor on the host, which would wait for the device."""
    params = steps.make_parameters()
    optimizer = steps.build(part, params, lr=0.1)
    for gradients in steps.random_gradients():
        steps.set_gradients(params, gradients)
        # of the step alone, not of what makes the gradients
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
    distributed_checkpoint_round_trip,
    refuses_the_state_of_other_parameters,
    refuses_a_parameter_that_changes,
    adds_groups_or_refuses_them,
    matches_names,
    copy_takes_the_same_steps,
    keeps_plain_state,
    obeys_parameter_groups,
    decays_the_weights,
    maximizes,
    takes_the_learning_rate_as_a_tensor,
    follows_a_schedule,
    returns_the_loss_of_a_closure,
    observing_changes_nothing,
    refuses_sparse_gradients,
    non_finite,
    stays_finite,
    meta,
    no_host_read,
)
ESSENTIAL: tuple[Contract, ...] = (
    leaves_gradients_alone,
    leaves_the_global_generator_alone,
    state_round_trip,
    non_finite,
)
