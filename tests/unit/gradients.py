"""Which parameters of a model a loss trains."""

from famx.nn.hooks import HasPenalty


def parameters_without_gradient(model, loss):
    """Returns the names of the parameters that neither the loss nor a penalty trains."""
    # gates and spans learn from penalties
    for module in model.modules():
        penalty = module.penalty() if isinstance(module, HasPenalty) else None
        if penalty is not None:
            loss = loss + penalty
    loss.backward()
    return [name for name, p in model.named_parameters() if p.grad is None]
