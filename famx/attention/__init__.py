from famx.attention._torch_compat import as_torch_mha

__all__ = ["as_torch_mha"]
