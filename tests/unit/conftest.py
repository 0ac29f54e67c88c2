"""Fixtures of the tests of kernels, which Triton's interpreter runs where there is no GPU."""

import importlib

import pytest
import torch

import famx.kernels


@pytest.fixture
def rounding_of_a_gpu(monkeypatch):
    """Lets the interpreter round to the nearest bfloat16 instead of towards 0."""
    tl = pytest.importorskip("triton.language", reason="needs Triton")
    interpreter = importlib.import_module("triton.runtime.interpreter")
    convert = interpreter._convert_float

    def convert_float(values, source, target, rounding_mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, rounding_mode)
        rounded = torch.tensor(values).bfloat16()
        return rounded.view(torch.int16).numpy().view("uint16")

    monkeypatch.setattr(interpreter, "_convert_float", convert_float)


@pytest.fixture
def with_kernels(monkeypatch):
    """Takes the way of the kernels on this device."""
    monkeypatch.setattr(famx.kernels, "available", lambda device: True)
