from famx.attention.torch_mha import as_torch_mha

__all__ = ["as_torch_mha"]
