"""Matrices are drawn so that colours can be compared."""

import torch
from torch import Tensor
from torch.testing import assert_close

from famx.monitoring.heatmap import COLOURS, GREY, MIN_WIDTH, ROW_HEIGHT, heat_map
from famx.monitoring.metrics import HeatMap, RowGroup

DARK = COLOURS[0]
PALE = COLOURS[-1]


def cell_colours(values: Tensor) -> Tensor:
    """Returns (rows, columns, 3) colours of the cells of a drawn matrix, from their middles."""
    n_rows, n_columns = values.shape
    image = torch.from_numpy(heat_map(HeatMap(values, tuple("abc"[:n_rows]), "")))
    cell_width = max(2, MIN_WIDTH // n_columns)
    x = image.shape[1] - cell_width // 2 - cell_width * torch.arange(n_columns).flip(0)
    y = slice(ROW_HEIGHT // 2, n_rows * ROW_HEIGHT, ROW_HEIGHT)
    return image[y, x] / 255


def rounded(colour: tuple[float, ...]) -> Tensor:
    """Returns the colour as a pixel stores it."""
    return torch.tensor(colour).mul(255).round() / 255


def test_a_constant_matrix_is_pale_and_dark_if_it_is_zero_or_negative():
    for value, colour in ((1.0, PALE), (0.0, DARK), (-1.0, DARK)):
        colours = cell_colours(torch.full((2, 2), value))
        assert_close(colours, rounded(colour).expand(2, 2, 3))


def test_differences_below_the_printed_digits_have_no_colours():
    colours = cell_colours(torch.tensor([[0.9, 0.9 + 1e-7]]))
    assert_close(colours, rounded(PALE).expand(1, 2, 3))


def test_an_outlier_does_not_change_other_colours():
    values = torch.linspace(-1, 1, 101).repeat(3, 1)
    with_outlier = values.clone()
    with_outlier[1, -1] = 1e9
    assert_close(cell_colours(with_outlier), cell_colours(values), atol=0.05, rtol=0)


def test_colours_are_logarithmic_where_values_span_orders_of_magnitude():
    logarithmic = cell_colours(torch.tensor([[1e-6, 1e-4, 1e-2]]))
    assert_close(logarithmic, cell_colours(torch.tensor([[-1.0, 0.0, 1.0]])))
    with_zero = cell_colours(torch.tensor([[0.0, 1e-6, 1.0]]))
    assert_close(with_zero[:, 0], rounded(DARK)[None])


def test_values_that_are_not_finite_are_grey():
    colours = cell_colours(torch.tensor([[0.0, torch.nan, 1.0]]))
    grey = rounded((GREY, GREY, GREY))
    assert_close(colours, torch.stack([rounded(DARK), grey, rounded(PALE)])[None])
    assert_close(cell_colours(torch.full((1, 1), torch.inf)), grey[None, None])


def test_groups_of_rows_have_a_white_line_with_their_title():
    values = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    groups = (RowGroup("first", 2, ("slow", "fast")), RowGroup("second", 1))
    grouped = torch.from_numpy(heat_map(HeatMap(values, ("a", "b", "c"), "", groups)))
    assert len(grouped) == (3 + 2 + 3) * ROW_HEIGHT
    cell_width = MIN_WIDTH // 2
    # the left edge of the cells, beside the names of columns
    x = grouped.shape[1] - cell_width * torch.tensor([2, 1]) + 2
    for row, line in enumerate((1, 2, 4)):
        expected = torch.stack([rounded(PALE if value else DARK) for value in values[row]])
        assert_close(grouped[line * ROW_HEIGHT + 6, x] / 255, expected)
    for line in (0, 3):
        assert (grouped[line * ROW_HEIGHT + 6, x] == 255).all()


def test_colours_include_a_marked_value_which_has_a_line_on_the_colour_bar():
    values = torch.tensor([[2.0, 3.0]])
    image = torch.from_numpy(heat_map(HeatMap(values, ("a",), "", mark=(1.0, "white"))))
    middle_of_bar = image[2 * ROW_HEIGHT + 6, -MIN_WIDTH:]
    assert (middle_of_bar[0] == 0).all()
    assert (middle_of_bar[1] == 255).all()
    # 2 is halfway between the marked 1 and 3
    assert_close(image[6, -MIN_WIDTH + 60] / 255, rounded(COLOURS[2]), atol=0.01, rtol=0)
