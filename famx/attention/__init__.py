from famx.attention._torch_compat import as_torch_mha, connect_torch_layers

__all__ = ["as_torch_mha", "connect_torch_layers"]
