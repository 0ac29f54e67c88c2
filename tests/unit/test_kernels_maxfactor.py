"""MaxFactor's kernels take the same steps as its eager form."""

from functools import partial

import pytest
import torch

import famx.kernels
import famx.optim.base
import famx.optim.maxfactor
from famx.kernels.maxfactor.layout import VECTOR, WIDTHS
from famx.optim import FAMMaxFactor, MaxFactor
from famx.registry import build

# overflow and NaN are what some of these tests are about
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(), (1,), (5,), (2 * VECTOR + 3,), (1, 1), (7, 33), (300, 50), (6, 4, 3, 3), (64, 32)]
EXTREME_SHAPES = [
    (2, 4 * WIDTHS[-1] + 1),
    (5000, 2),
    (2, 33 * WIDTHS[-1]),
    (1, 600),
    (600, 1),
    (2, 512),
]


@pytest.fixture(autouse=True)
def device():
    """Creates all tensors where the kernels run: on the GPU if there is one."""
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(None)


@pytest.fixture
def with_kernels(monkeypatch):
    """Returns a function that selects between kernels and the eager form."""

    def select(enabled):
        monkeypatch.setattr(famx.kernels, "available", lambda device: enabled)

    return select


def normals(shapes, seed, dtype=torch.float32):
    generator = torch.Generator("cpu").manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator, device="cpu") for shape in shapes]
    return [x.to(DEVICE, dtype) for x in tensors]


def run(optimizer, params, rows):
    for row in rows:
        for p, gradient in zip(params, row, strict=True):
            p.grad = None if gradient is None else gradient.clone()
        optimizer.step()
    state = [optimizer.state[p] for p in params]
    return params, [value for s in state for _, value in sorted(s.items())]


def assert_same_steps(with_kernels, make, initial, rows, tolerance=1e-5):
    """Compares parameters and state after the steps of both forms; returns the parameters."""
    results = []
    for enabled in (False, True):
        with_kernels(enabled)
        params = [p.clone() for p in initial]
        results.append(run(make(params), params, rows))
    for expected, result in zip(*results, strict=True):
        assert len(expected) == len(result)
        for x, y in zip(expected, result, strict=True):
            assert x.dtype == y.dtype
            assert y.isfinite().all()
            # relative to the largest element, since signs and rows differ in size
            scale = x.float().abs().max() + 1e-30
            assert torch.allclose(
                x.float() / scale, y.float() / scale, rtol=tolerance, atol=tolerance
            )
    return results[1][0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"magnitude": "max", "weight_decay": 0.0},
        {"lr": 0.3, "eps": (1e-5, 1e-2), "clip_threshold": 0.5, "gamma": 0.9, "beta2_decay": -0.5},
        {"lr": 0.05, "min_lr": 0.06},
        {"lr": 0.0},
    ],
)
def test_steps_of_kernels_equal_those_of_the_eager_form(with_kernels, options):
    initial = normals(SHAPES, 0)
    rows = [normals(SHAPES, t) for t in range(1, 4)]
    params = assert_same_steps(with_kernels, partial(MaxFactor, **options), initial, rows)
    unchanged = [torch.equal(p, q) for p, q in zip(initial, params, strict=True)]
    assert all(unchanged) if options.get("lr") == 0.0 else not any(unchanged)


def test_many_steps_of_kernels_equal_those_of_the_eager_form(with_kernels):
    shapes = [(7, 33), (5,)]
    rows = [normals(shapes, t) for t in range(1, 41)]
    assert_same_steps(with_kernels, MaxFactor, normals(shapes, 0), rows)


def test_a_learning_rate_on_the_device_takes_the_same_steps(with_kernels):
    def make(params):
        return MaxFactor([{"params": params, "lr": torch.tensor(0.05)}])

    shapes = [(7, 33), (5,)]
    rows = [normals(shapes, t) for t in range(1, 4)]
    assert_same_steps(with_kernels, make, normals(shapes, 0), rows)


def test_wide_and_tall_matrices_take_the_same_steps(with_kernels):
    initial = normals(EXTREME_SHAPES, 0)
    rows = [normals(EXTREME_SHAPES, t) for t in range(1, 3)]
    # the maximum of the first row is in its last tile
    rows[1][2] = torch.ones(2, 33 * WIDTHS[-1])
    rows[1][2][:, -1] = torch.tensor([100.0, 0.01])
    assert_same_steps(with_kernels, MaxFactor, initial, rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_the_same_steps(with_kernels, dtype):
    # single and half precision in one group
    initial = normals(SHAPES, 0, dtype) + normals(SHAPES, 1)
    rows = [normals(SHAPES, 2 * t, dtype) + normals(SHAPES, 2 * t + 1) for t in range(1, 4)]
    tolerance = 4 * torch.finfo(dtype).eps
    assert_same_steps(with_kernels, MaxFactor, initial, rows, tolerance)


def test_parameters_and_gradients_that_are_not_contiguous_take_the_same_steps(with_kernels):
    initial = [x.permute(*reversed(range(x.ndim))) for x in normals([(33, 7), (3, 3, 4, 6)], 0)]
    # and a gradient whose address is not a multiple of 16 bytes
    initial.append(torch.randn(16, 48))
    rows = []
    for t in range(1, 4):
        transposed = [x.transpose(-1, -2) for x in normals([(33, 7), (6, 4, 3, 3)], t)]
        rows.append([*transposed, torch.randn(16 * 48 + 1)[1:].view(16, 48)])
    results = []
    for enabled in (False, True):
        with_kernels(enabled)
        params = [torch.empty_strided(p.shape, p.stride()).copy_(p) for p in initial]
        optimizer = MaxFactor(params)
        for row in rows:
            for p, gradient in zip(params, row, strict=True):
                p.grad = gradient
            optimizer.step()
        results.append(params)
    for x, y in zip(*results, strict=True):
        assert torch.allclose(x, y, rtol=1e-5, atol=1e-6)
    assert not torch.equal(results[0][0], initial[0])


def test_steps_with_gradients_that_are_not_finite_are_skipped(with_kernels):
    shapes = [(7, 33), (5,), (20, 20)]
    initial = normals(shapes, 0)
    rows = [normals(shapes, t) for t in range(1, 6)]
    rows[0][1][2] = torch.nan
    rows[3][0][4, 5] = torch.inf
    assert_same_steps(with_kernels, MaxFactor, initial, rows)
    with_kernels(True)
    params = [p.clone() for p in initial]
    run(MaxFactor(params), params, rows[:1])
    assert all(map(torch.equal, params, initial))


def test_a_matrix_whose_squares_overflow_does_not_change_but_the_remaining_tensors_do(
    with_kernels,
):
    shapes = [(300, 50), (40, 40), (6,), (3, 900)]
    initial = normals(shapes, 0)
    rows = [normals(shapes, t) for t in range(1, 5)]
    rows[2][1][30, 3] = 1e20
    # each square is finite, but their sum over a column is not
    rows[2][3][:, 7] = 1.5e19
    rows[2][2][3] = 1e25
    assert_same_steps(with_kernels, MaxFactor, initial, rows)
    with_kernels(True)
    params = [p.clone() for p in initial]
    optimizer = MaxFactor(params)
    run(optimizer, params, rows[:2])
    before = [p.clone() for p in params]
    run(optimizer, params, rows[2:3])
    assert [torch.equal(p, q) for p, q in zip(before, params, strict=True)] == [
        False,
        True,
        False,
        True,
    ]


def test_parameters_whose_squares_overflow_take_the_same_steps(with_kernels):
    shapes = [(7, 33), (5,)]
    initial = [1e30 * x for x in normals(shapes, 0)]
    rows = [normals(shapes, t) for t in range(1, 3)]
    params = assert_same_steps(with_kernels, MaxFactor, initial, rows)
    # by at most RMS θ = sqrt(largest number) / sqrt(n), times lr, besides the decay
    for p, q in zip(initial, params, strict=True):
        assert torch.allclose(p * (1 - 0.1 * 0.025) ** 2, q, rtol=1e-5)


def test_a_matrix_whose_scaled_gradient_overflows_does_not_change(with_kernels):
    # the second gradient is in a row and a column that have been 0
    first = torch.full((2, 600), 1e17)
    first[1] = 0.0
    first[:, 0] = 0.0
    second = torch.zeros(2, 600)
    second[1, 0] = 1e-2
    make = partial(MaxFactor, eps=(1e-22, 1e-3), beta2_decay=-100.0, weight_decay=0.0)
    initial = normals([(2, 600)], 0)
    (after_first,) = assert_same_steps(with_kernels, make, initial, [[first]])
    (after_second,) = assert_same_steps(with_kernels, make, initial, [[first], [second]])
    assert torch.equal(after_first, after_second)


def test_parameters_without_gradients_do_not_change(with_kernels):
    shapes = [(7, 33), (5,), (20, 20)]
    initial = normals(shapes, 0)
    rows = [normals(shapes, t) for t in range(1, 6)]
    rows[0][0] = None
    rows[2][1] = None
    rows[3][2] = None
    assert_same_steps(with_kernels, MaxFactor, initial, rows)


def test_groups_of_different_options_take_the_same_steps(with_kernels):
    def make(params):
        groups = [
            {"params": params[:4], "lr": 0.01},
            {"params": params[4:7], "weight_decay": 0.3, "gamma": 0.5},
            # the eager form serves in both cases
            {"params": params[7:], "clip": 0.01},
        ]
        return MaxFactor(groups)

    initial = normals(SHAPES, 0)
    rows = [normals(SHAPES, t) for t in range(1, 5)]
    assert_same_steps(with_kernels, make, initial, rows)


@pytest.mark.parametrize("options", [{"full_matrix": True}, {"magnitude": "median"}, {"clip": 0.1}])
def test_options_without_kernels_take_the_eager_form(with_kernels, monkeypatch, options):
    monkeypatch.setattr(famx.optim.maxfactor, "step_by_kernels", None)
    initial = normals(SHAPES, 0)
    assert_same_steps(with_kernels, partial(MaxFactor, **options), initial, [normals(SHAPES, 1)])


@pytest.mark.parametrize("on_device", [False, True])
def test_averaged_gradients_take_the_same_steps(with_kernels, monkeypatch, on_device):
    if on_device:
        for module in (famx.optim.base, famx.optim.maxfactor):
            monkeypatch.setattr(module, "scalars", lambda values: list(values.unbind()))
    rule = partial(build, "momentum", {"name": "random", "every": 2})
    shapes = [(12, 13), (5,), (90, 20)]
    initial = normals(shapes, 0)
    rows = [normals(shapes, t) for t in range(1, 6)]
    for make in (partial(MaxFactor, momentum=rule), FAMMaxFactor):
        assert_same_steps(with_kernels, make, initial, rows)


def extreme_case(seed):
    """Returns parameters and gradients of three steps: huge, tiny, zero or with one element."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def uniform(low, high):
        return low + (high - low) * torch.rand((), generator=generator, device="cpu").item()

    shapes = [(7, 33), (40,), (), (3, 4, 2, 2), (1, 300), (300, 1)]
    params = []
    for x in normals(shapes, seed):
        params.append(x * 10 ** uniform(-40, 37))
    rows = []
    for t in range(3):
        row = []
        for x in normals(shapes, 3 * seed + t):
            kind = int(uniform(0, 4))
            gradient = x * 10 ** uniform(-45, 25 if kind == 3 else 15)
            if kind == 0:
                gradient = torch.zeros_like(x)
            elif kind == 1:
                # one element is not zero
                one = torch.zeros(x.numel())
                one[seed % x.numel()] = gradient.flatten()[0]
                gradient = one.view(x.shape)
            elif kind == 2 and x.ndim > 1:
                # rows of very different sizes
                uniforms = torch.rand(len(x), generator=generator, device="cpu")
                sizes = 10 ** (40 * uniforms - 30)
                gradient = x * sizes.view(-1, *[1] * (x.ndim - 1)).to(DEVICE)
            row.append(gradient)
        rows.append(row)
    return params, rows


@pytest.mark.parametrize(
    ("part", "on_device"), [(MaxFactor, False), (MaxFactor, True), (FAMMaxFactor, False)]
)
def test_the_eager_form_stays_finite(part, on_device, monkeypatch):
    if on_device:
        for module in (famx.optim.base, famx.optim.maxfactor):
            monkeypatch.setattr(module, "scalars", lambda values: list(values.unbind()))
    # 1,020 tensors
    assert_stays_finite(part, range(170))


def test_kernels_stay_finite(with_kernels):
    with_kernels(True)
    assert_stays_finite(MaxFactor, range(4))


def assert_stays_finite(part, seeds):
    for seed in seeds:
        params, rows = extreme_case(seed)
        optimizer = part(params)
        _, state = run(optimizer, params, rows)
        for x in (*params, *state):
            assert x.isfinite().all(), f"case {seed}: {x}"


@pytest.mark.parametrize("enabled", [False, True], ids=["eager", "kernels"])
@pytest.mark.parametrize("size", [4.1, 1e4, 1e30])
def test_large_tensors_without_a_gradient_signal_only_decay(with_kernels, enabled, size):
    with_kernels(enabled)
    params = [torch.full(shape, size) for shape in [(), (5,), (1, 1), (7, 33), (4, 2, 3)]]
    run(MaxFactor(params), params, [[torch.zeros_like(p) for p in params]])
    for p in params:
        assert torch.allclose(p, torch.full_like(p, size * (1 - 0.1 * 0.025)))


@pytest.mark.parametrize("enabled", [False, True], ids=["eager", "kernels"])
def test_one_nonzero_element_of_a_million_leaves_everything_finite(with_kernels, enabled):
    with_kernels(enabled)
    gradient = torch.zeros(1000, 1000)
    gradient[417, 33] = 1e-6
    param = torch.full((1000, 1000), 5.0)
    optimizer = MaxFactor([param])
    # the check of the gradient would take most of the time
    optimizer.found_inf = torch.zeros(())
    run(optimizer, [param], [[gradient]])
    assert param.isfinite().all()
    assert param[417, 33] < param[0, 0]
