"""The myelinated block for one sequence in evaluation, position by position, with real skipping."""

import torch


def run_skipping(block, start):
    """Returns the output for `start` (time, d_model), and the number of nodes in each layer."""
    seq_len = len(start)
    n_layers = len(block.nodes)
    x = start.clone()
    jumps = [policy_jump(block, start[visible(block, t)]) for t in range(seq_len)]
    working = [block.working_memory[0, 0] for _ in range(seq_len)]
    # the layer that each position is in, and the positions that were nodes
    layer_of = [0] * seq_len
    nodes = [0] * n_layers
    for i, node in enumerate(block.nodes):
        normed = node.norm(x)
        rotated = rotate(block, normed)
        queries = rotated
        if node.query is not None:
            queries = rotate(block, normed @ node.query.T)
        attended = x.clone()
        for t in range(seq_len):
            if layer_of[t] == i and node.importance(normed[t]).sigmoid() > block.threshold:
                nodes[i] += 1
                y = attend(block, normed, rotated, queries[t], t)
                attended[t] += node.gate(normed[t]).sigmoid() * node.adapter(y)
        x = attended.clone()
        if i == n_layers - 1:
            break
        for t in range(seq_len):
            if layer_of[t] == i:
                pool = attended[visible(block, t)].mean(0)
                g = block.memory_gate(pool).sigmoid()
                working[t] = g * working[t] + (1 - g) * pool
                weight = block.jump_weights[jumps[t] - 1]
                x[t] = attended[t] + weight * start[t] + (1 - weight) * working[t]
                layer_of[t] = min(i + jumps[t], n_layers - 1)
    normed = block.mlp_norm(x)
    return x + block.mlp_gate(normed).sigmoid() * block.mlp(normed) - start, nodes


def visible(block, t):
    return slice(0, t + 1) if block.causal else slice(None)


def policy_jump(block, inputs):
    return 1 + block.policy(inputs.mean(0)).argmax().item()


def rotate(block, normed):
    """Rotates each head of each position on its own."""
    width = normed.shape[1] // block.n_heads
    rotated = torch.empty_like(normed)
    for t in range(len(normed)):
        for first in range(0, normed.shape[1], width):
            channels = slice(first, first + width)
            rotated[t, channels] = block.rotary(normed[None, None, t : t + 1, channels], t)[0, 0, 0]
    return rotated


def attend(block, normed, rotated, query, t):
    width = normed.shape[1] // block.n_heads
    heads = []
    for first in range(0, normed.shape[1], width):
        channels = slice(first, first + width)
        scores = rotated[visible(block, t), channels] @ query[channels] / width**0.5
        heads.append(scores.softmax(0) @ normed[visible(block, t), channels])
    return torch.cat(heads)
