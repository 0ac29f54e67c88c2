"""Kernels for many tensors equal their plain forms.

Without CUDA, Triton runs the kernels on the CPU (TRITON_INTERPRET=1).
"""

import importlib
from functools import partial

import pytest
import torch

import famx.kernels
from famx.kernels import tensor_table
from famx.notation import TensorInfo
from famx.optim import _kernels
from famx.optim._gradients import non_finite
from famx.spectrum.temporal import Temporal

tl = pytest.importorskip("triton.language", reason="needs Triton")
adamw = importlib.import_module("famx.kernels.adamw")
multi_tensor = importlib.import_module("famx.kernels.multi_tensor")
CHUNK = importlib.import_module("famx.kernels.chunked").CHUNK

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# NumPy, which computes for the interpreter, warns where a GPU returns inf or NaN
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("rounding_of_a_gpu"),
]
if DEVICE.type == "cuda":
    pytestmark.append(pytest.mark.gpu)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# more than a chunk, exactly a chunk, scalars, and tensors without elements
SHAPES = [(70, 3, 11), (CHUNK,), (), (0,), (5,), (0, 4), (3, CHUNK + 1), (16,)]


def tensors(seed, dtypes=(torch.float32,), offset=0):
    """Returns tensors of all shapes, whose dtypes alternate.

    Args:
        offset: elements before each tensor in memory, so that addresses are not multiples of 16.
    """
    generator = torch.Generator().manual_seed(seed)
    result = []
    for i, shape in enumerate(SHAPES):
        values = torch.randn(shape, generator=generator).to(dtypes[i % len(dtypes)])
        memory = torch.zeros(offset + values.numel(), dtype=values.dtype, device=DEVICE)
        result.append(memory[offset:].view(shape).copy_(values))
    return result


def clones(values):
    return [x.clone() for x in values]


def flag(value):
    return torch.tensor(float(value), device=DEVICE)


def vector(*values):
    """Returns numbers for all tensors, in a vector on the device."""
    repeated = [values[i % len(values)] for i in range(len(SHAPES))]
    return torch.tensor(repeated, dtype=torch.float32, device=DEVICE)


def doubles(values):
    return [x.double() for x in values]


def assert_close(results, expected):
    """Requires that the results are the rounded ones of a computation in double precision."""
    for x, y in zip(results, expected, strict=True):
        eps = torch.finfo(x.dtype).eps
        torch.testing.assert_close(x.double(), y, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("dtypes", [*([dtype] for dtype in DTYPES), DTYPES])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("bad", [None, torch.nan, torch.inf, -torch.inf])
def test_the_check_reads_every_element_of_every_gradient(dtypes, offset, bad):
    params = tensors(0, dtypes)
    for row in (2, 6):
        gradients = tensors(1, dtypes, offset)
        if bad is not None:
            gradients[row].view(-1)[-1] = bad
        gradients[1] = None
        assert multi_tensor.non_finite(gradients, params) == float(bad is not None)


def test_the_largest_number_is_finite():
    params = [torch.zeros(3, device=DEVICE)]
    gradients = [torch.full((3,), -torch.finfo(torch.float32).max, device=DEVICE)]
    assert multi_tensor.non_finite(gradients, params) == 0


@pytest.mark.usefixtures("with_kernels")
def test_the_check_of_gradients_uses_the_kernel_except_for_doubles(monkeypatch):
    params = tensors(0)
    gradients = tensors(1)
    gradients[0][0, 0, 0] = torch.nan
    assert non_finite(gradients, params) == 1
    calls = []
    monkeypatch.setattr(multi_tensor, "non_finite", lambda *args: calls.append(args) or flag(0))
    assert non_finite(gradients, params) == 0
    doubles = [g.double() for g in gradients]
    assert non_finite(doubles, doubles) == 1
    assert len(calls) == 1


@pytest.mark.parametrize("dtypes", [*([dtype] for dtype in DTYPES), DTYPES])
@pytest.mark.parametrize(("offset", "lr"), [(0, 0.1), (1, torch.tensor(0.1))])
@pytest.mark.parametrize("found_inf", [0, 1])
@pytest.mark.usefixtures("with_kernels")
def test_averages_and_descents_equal_their_plain_forms(dtypes, offset, found_inf, lr):
    found_inf = flag(found_inf)
    params = tensors(0, dtypes, offset)
    averages = tensors(1, dtypes)
    gradients = tensors(2, dtypes)
    weights = vector(0.1, 0.5, 1.0)
    expected_averages = doubles(averages)
    expected = doubles(params)
    double_weights = list(weights.double())
    _kernels.average_reference(expected_averages, doubles(gradients), double_weights, found_inf)
    _kernels.descend_reference(expected, expected_averages, float(lr), 0.2, found_inf)
    # in two launches
    separate_averages = clones(averages)
    _kernels.average(separate_averages, gradients, list(weights), found_inf)
    assert_close(separate_averages, expected_averages)
    separate = clones(params)
    _kernels.descend(separate, separate_averages, lr, 0.2, found_inf)
    assert_close(separate, expected)
    # in one
    numbers = (1 - weights, weights)
    multi_tensor.average_and_descend(params, gradients, averages, numbers, lr, 0.2, found_inf)
    assert_close(averages, expected_averages)
    assert_close(params, expected)


@pytest.mark.usefixtures("with_kernels")
def test_weights_of_an_average_may_be_numbers_and_tensors():
    weights = [0.1, flag(0.5), 0.1, 1.0, flag(0.3), 1.0, 0.25, flag(1.0)]
    averages = tensors(0)
    expected = doubles(averages)
    gradients = tensors(1)
    _kernels.average(averages, gradients, weights, flag(0))
    _kernels.average_reference(expected, doubles(gradients), weights, flag(0))
    assert_close(averages, expected)
    _kernels.average([], [], [], flag(0))
    _kernels.descend([], [], 0.1, 0.0, flag(0))


@pytest.mark.usefixtures("with_kernels")
def test_a_step_counts_as_a_write_into_its_parameters():
    params = tensors(0)
    versions = [p._version for p in params]
    _kernels.descend(params, tensors(1), 0.1, 0.0, flag(0))
    assert all(p._version > version for p, version in zip(params, versions, strict=True))


def plain_adamw(param, gradient, numbers, beta2):
    """Changes a parameter and its averages m and v as AdamW does.

    Args:
        param: the parameter, m and v.
        numbers: momentum, the product of all momentum, and the number of the step.
    """
    p, m, v = param
    a, product, t = numbers
    m.copy_(a * m + (1 - a) * gradient)
    v.copy_(beta2 * v + (1 - beta2) * gradient.square())
    root = (v / (1 - beta2**t)).sqrt() + 1e-8
    p.sub_(0.1 * (m / (1 - product) / root + 0.2 * p))


@pytest.mark.parametrize("dtypes", [*([dtype] for dtype in DTYPES), DTYPES])
@pytest.mark.parametrize(
    ("offset", "beta2", "steps"), [(0, 0.98, (1, 7, 3000)), (1, 0.9999, (1, 40)), (1, 0.0, (2,))]
)
def test_adamw_equals_its_plain_form(dtypes, offset, beta2, steps):
    params = tensors(0, dtypes, offset)
    gradients = tensors(1, dtypes)
    averages = [0.7 * g for g in gradients]
    numbers = (vector(0.9, 0.5), vector(0.7, 0.2, 0.3), vector(*steps))
    weight_sums = 1 - beta2 ** numbers[2].double()
    rows = zip(weight_sums, gradients, strict=True)
    squares = [(0.6 * weight_sum * g.double().square()).to(g) for weight_sum, g in rows]
    expected = [doubles(params), doubles(averages), doubles(squares)]
    param_rows = zip(*expected, strict=True)
    number_rows = zip(*map(doubles, numbers), strict=True)
    rows = zip(param_rows, doubles(gradients), number_rows, strict=True)
    for param, gradient, param_numbers in rows:
        plain_adamw(param, gradient, param_numbers, beta2)
    # without a gradient, and with a flag, nothing changes
    gradients[0] = None
    expected[0][0].copy_(params[0])
    run = partial(adamw.adamw, params, gradients, (averages, squares), numbers)
    before = clones(params)
    options = {"beta2": beta2, "eps": 1e-8, "weight_decay": 0.2}
    run(0.1, **options, found_inf=flag(1))
    assert all(map(torch.equal, params, before))
    run(torch.tensor(0.1), **options, found_inf=flag(0))
    assert_close(params, expected[0])
    assert_close(averages[1:], expected[1][1:])
    assert_close(squares[1:], expected[2][1:])


def test_a_tiny_gradient_without_eps_leads_to_a_finite_step():
    p = torch.zeros(4, device=DEVICE)
    state = [torch.zeros(4, device=DEVICE), torch.full((4,), 1e-40, device=DEVICE)]
    g = torch.full((4,), 1e-20, device=DEVICE)
    half = torch.full((1,), 0.5, device=DEVICE)
    lists = [[p], [g], ([state[0]], [state[1]]), (half, half, 2 * half)]
    adamw.adamw(*lists, 0.1, beta2=0.5, eps=0.0, weight_decay=0.0, found_inf=flag(0))
    assert p.isfinite().all()
    assert (p < 0).all()


@pytest.mark.parametrize("missing", [False, True])
def test_steps_are_counted_unless_they_are_skipped(missing):
    products = vector(1.0, 0.5)
    steps = vector(3.0, 4.0, 0.0)
    skipped = torch.zeros((), dtype=torch.long, device=DEVICE)
    momentum = vector(0.9, 0.8, 0.7)
    has_gradient = vector(1.0, 0.0, 1.0) if missing else None
    for found_inf in (0, 1, 0):
        expected = (products.clone(), steps.clone(), skipped + found_inf)
        if not found_inf:
            counted = torch.ones_like(steps) if has_gradient is None else has_gradient
            expected[0].copy_(torch.where(counted > 0, products * momentum, products))
            expected[1].add_(counted)
        else:
            momentum = torch.full_like(momentum, torch.nan)
        multi_tensor.count_step((products, steps, skipped), momentum, has_gradient, flag(found_inf))
        assert torch.equal(products, expected[0])
        assert torch.equal(steps, expected[1])
        assert skipped == expected[2]
        momentum = vector(0.9, 0.8, 0.7)


@pytest.mark.parametrize("dtypes", [*([dtype] for dtype in DTYPES), DTYPES])
@pytest.mark.parametrize("coordinates", [64, 5])
def test_a_sketch_equals_its_plain_form(dtypes, coordinates, monkeypatch):
    infos = [TensorInfo(shape, n_bands=4) for shape in SHAPES]
    plain = Temporal(infos, coordinates=coordinates, window=7).to(DEVICE)
    with_kernel = Temporal(infos, coordinates=coordinates, window=7).to(DEVICE)
    for seed in range(8):
        gradients = tensors(seed, dtypes)
        # one whose memory is in another order
        gradients[0] = gradients[0].transpose(0, 2).contiguous().transpose(0, 2)
        monkeypatch.setattr(famx.kernels, "available", lambda device: False)
        expected = plain.sketch(gradients)
        expected_shares = plain(gradients)
        monkeypatch.setattr(famx.kernels, "available", lambda device: True)
        old_ring = with_kernel.ring
        ring_before = old_ring.clone()
        result = with_kernel.sketch(gradients)
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)
        torch.testing.assert_close(with_kernel(gradients), expected_shares)
        assert torch.equal(with_kernel.ring, plain.ring)
        assert torch.equal(old_ring, ring_before)


def test_a_flag_keeps_the_ring_with_and_without_the_kernel(monkeypatch):
    infos = [TensorInfo(shape, n_bands=4) for shape in SHAPES]
    for has_kernels in (False, True):
        monkeypatch.setattr(famx.kernels, "available", lambda device, value=has_kernels: value)
        spectrum = Temporal(infos, coordinates=5, window=7).to(DEVICE)
        spectrum(tensors(0))
        ring = spectrum.ring.clone()
        spectrum.found_inf = flag(1)
        spectrum([torch.full_like(g, torch.nan) for g in tensors(1)])
        assert torch.equal(spectrum.ring, ring)
        # a flag is for one call
        spectrum(tensors(2))
        assert torch.equal(spectrum.ring[-2], ring[-1])
        assert not torch.equal(spectrum.ring[-1], ring[-1])


@pytest.mark.parametrize(
    ("coordinates", "window", "n_bands"), [(64, 32, 8), (5, 7, 4), (70, 33, 3), (3, 200, 60)]
)
def test_shares_of_bands_equal_their_plain_form(coordinates, window, n_bands, monkeypatch):
    infos = [TensorInfo((90,), n_bands=n_bands), TensorInfo((4,), n_bands=2), TensorInfo((80, 2))]
    infos[2] = infos[2]._replace(n_bands=n_bands, layout="split")
    spectrum = Temporal(infos, coordinates=coordinates, window=window).to(DEVICE)
    spectrum.ring = torch.randn(spectrum.ring.shape, generator=torch.Generator().manual_seed(0))
    # gradients whose squares underflow, a coordinate and a tensor of zeros
    spectrum.ring *= torch.tensor([1e-30, 1.0, 0.0])[:, None]
    spectrum.ring[:, 0, 1] = 0.0
    spectrum.ring = spectrum.ring.to(DEVICE, torch.bfloat16)
    results = []
    for has_kernels in (True, False):
        monkeypatch.setattr(famx.kernels, "available", lambda device, value=has_kernels: value)
        spectrum.ring[1, 1, 0] = 1.0
        shares = spectrum.measure()
        spectrum.ring[1, 1, 0] = torch.nan
        results.append(torch.stack([shares, spectrum.measure()]))
    torch.testing.assert_close(*results, equal_nan=True)
    assert results[0][0].isfinite().all()
    assert results[0][1].isnan().any(1).tolist() == [False, True, False]


def test_addresses_are_the_same_however_they_are_written():
    columns = (tensors(0), [None, *tensors(1)[1:]])
    table = tensor_table.addresses(*columns)
    assert table is tensor_table.addresses(*columns)
    expected = [[x.data_ptr() for x in columns[0]], [0, *(x.data_ptr() for x in columns[1][1:])]]
    assert table.tolist() == expected
    assert tensor_table.written_addresses(expected, DEVICE).tolist() == expected
    numels = tuple(x.numel() for x in columns[0])
    chunks = tensor_table.chunks(numels, CHUNK, DEVICE)
    assert tensor_table.chunks(numels, CHUNK, DEVICE) is chunks
