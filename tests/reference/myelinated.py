"""The myelinated block for one sequence in evaluation, position by position, skipping what is skipped."""

import torch


def skipping(block, start):
    """`x - start`, and how many positions were nodes in each layer. `start` is (time, d_model)."""
    x, (seq_len, d_model), n_layers = start.clone(), start.shape, len(block.nodes)
    width = d_model // block.n_heads

    def past(t):
        return slice(0, t + 1) if block.causal else slice(None)

    jump = [1 + block.policy(start[past(t)].mean(0)).argmax().item() for t in range(seq_len)]
    working = [block.working_memory[0, 0] for _ in range(seq_len)]
    at, nodes = [0] * seq_len, [0] * n_layers
    for i, node in enumerate(block.nodes):
        normed = node.norm(x)
        turned = torch.stack(
            [torch.cat([block.rotary(part[None, None, None], t).flatten() for part in one.split(width)])
             for t, one in enumerate(normed)]
        )  # fmt: skip
        after = x.clone()
        for t in range(seq_len):
            if at[t] != i or node.importance(normed[t]).sigmoid() <= block.threshold:
                continue
            nodes[i] += 1
            heads = []
            for one in range(0, d_model, width):
                keys = turned[past(t), one : one + width]
                weights = (keys @ turned[t, one : one + width] / width**0.5).softmax(0)
                heads.append(weights @ normed[past(t), one : one + width])
            after[t] += node.gate(normed[t]).sigmoid() * node.adapter(torch.cat(heads))
        x = after.clone()
        if i == n_layers - 1:
            break
        for t in range(seq_len):
            if at[t] == i:
                pool = after[past(t)].mean(0)
                g = block.memory_gate(pool).sigmoid()
                working[t] = g * working[t] + (1 - g) * pool
                weight = block.jump_weights[jump[t] - 1]
                x[t] = after[t] + weight * start[t] + (1 - weight) * working[t]
                at[t] = min(i + jump[t], n_layers - 1)
    normed = block.mlp_norm(x)
    return x + block.mlp_gate(normed).sigmoid() * block.mlp(normed) - start, nodes
