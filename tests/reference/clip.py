"""The clip of each unit by its own weights, one tensor and one unit at a time."""


def plain_clip(params, share, eps=1e-3):
    """Clipped gradients, None where there is none, and the norms of the gradients as they were."""
    clipped, norms = [], []
    for p in params:
        gradient = None if p.grad is None else p.grad.double()
        norms.append(0.0 if gradient is None else gradient.norm().item())
        clipped.append(
            gradient if gradient is None else clipped_tensor(p.double(), gradient, share, eps)
        )
    return clipped, norms


def clipped_tensor(weights, gradient, share, eps):
    gradient = gradient.clone()
    units = zip(weights, gradient, strict=True) if weights.ndim > 1 else [(weights, gradient)]
    for own, g in units:
        longest = share * max(own.norm().item(), eps * own.numel() ** 0.5)
        if g.norm() > longest:
            g.mul_(longest / g.norm())
    return gradient
