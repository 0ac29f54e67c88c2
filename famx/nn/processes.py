"""Values that the processes of a training share."""

from torch import Tensor, distributed


def is_shared() -> bool:
    """Returns whether several processes train together."""
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    return distributed.get_world_size() > 1


def sum_over_processes(value: Tensor) -> Tensor:
    """Returns the sum of a tensor over all processes, all of which must call this."""
    value = value.clone()
    if is_shared():
        distributed.all_reduce(value)
    return value


def of_first_process(value: Tensor) -> Tensor:
    """Returns the first process's value, such as a random draw; all processes must call this."""
    if not is_shared():
        return value
    value = value.clone()
    distributed.broadcast(value, 0)
    return value
