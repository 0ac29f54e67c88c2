"""Clipping by the norms of units in plain form: one tensor and one unit at a time."""


def plain_clip(params, share, eps=1e-3):
    """Returns the clipped gradients, None where there is none, and the norms of the gradients."""
    clipped = []
    norms = []
    for p in params:
        if p.grad is None:
            clipped.append(None)
            norms.append(0.0)
            continue
        gradient = p.grad.double()
        clipped.append(clipped_tensor(p.double(), gradient, share, eps))
        norms.append(gradient.norm().item())
    return clipped, norms


def clipped_tensor(weights, gradient, share, eps):
    """Returns the gradient of one tensor, clipped unit by unit."""
    gradient = gradient.clone()
    units = zip(weights, gradient, strict=True) if weights.ndim > 1 else [(weights, gradient)]
    for unit, g in units:
        longest = share * max(unit.norm().item(), eps * unit.numel() ** 0.5)
        if g.norm() > longest:
            g.mul_(longest / g.norm())
    return gradient
