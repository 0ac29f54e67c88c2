"""`python -m famx.parts` lists every part and preset."""

from pathlib import Path

import pytest

from famx import parts
from famx.analysis.settings import SECTIONS, settings_of
from famx.notation import UserError
from famx.registry import PARTS, ROOMS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_parts_is_what_markdown_prints(capsys):
    parts.show(["--markdown"])
    printed = capsys.readouterr().out
    page = (DOCS / "parts.md").read_text()
    assert page == printed, "write it anew: python -m famx.parts --markdown --write"


def test_write_writes_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "DOCS", tmp_path)
    monkeypatch.setattr(parts, "PAGE", tmp_path / "parts.md")
    parts.show(["--markdown", "--write"])
    assert (tmp_path / "parts.md").read_text() == parts.markdown(ROOMS)


def test_write_refuses_what_would_not_be_all_parts_of_famx(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"parts\.md lists all parts of famx; omit attention"):
        parts.show(["attention", "--write"])
    monkeypatch.setattr(parts, "DOCS", tmp_path / "nowhere")
    with pytest.raises(UserError, match="there is no folder"):
        parts.show(["--write"])


def test_each_part_has_a_row_with_its_docstring_and_defaults():
    page = parts.markdown(ROOMS)
    for room, classes in PARTS.items():
        for name in classes:
            assert f"\n| `{room}={name}` | " in page
    (row,) = [line for line in page.splitlines() if line.startswith("| `attention=adaptive_span`")]
    assert "max_span=128" in row
    assert "arXiv:" in row


def test_the_catalogue_lists_parts_and_presets(capsys):
    parts.show(["norm", "model"])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line[:3].strip()]
    assert names[:3] == ["norm", "layernorm", "rmsnorm"]
    assert "transformer" in names
    assert all(len(line) <= parts.LINE_WIDTH for line in lines)


def test_the_catalogue_lists_parts_of_the_user(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PARTS, "norm", dict(PARTS["norm"]))
    file = tmp_path / "user_norm.py"
    file.write_text(
        '"""My norm."""\n'
        "import torch\n"
        "from famx.registry import register\n\n"
        '@register("norm")\n'
        "class UserNorm(torch.nn.Identity):\n"
        "    def __init__(self, d_model, *, eps=1e-3): super().__init__()\n"
    )
    parts.show(["norm", f"famx_parts=[{file}]"])
    output = capsys.readouterr().out
    assert "user_norm" in output
    assert "My norm." in output
    assert "eps=0.001" in output


def test_an_unknown_room_is_refused():
    with pytest.raises(UserError, match="no such room; did you mean attention"):
        parts.show(["atention"])


# settings


def test_the_page_of_settings_is_what_settings_prints(capsys):
    parts.show(["--settings"])
    printed = capsys.readouterr().out
    page = parts.SETTINGS_PAGE.read_text()
    assert page == printed, "write it anew: python -m famx.parts --settings --write"


def test_every_setting_has_a_type_and_a_description():
    for section in SECTIONS:
        for setting in settings_of(section):
            assert setting.kind, setting
            assert setting.description, setting
            assert setting.default or setting.key in ("name", "model.name", "model.draw.space")


@pytest.mark.parametrize("section", ["trainer", "loader", "sweep"])
def test_a_section_is_listed_like_a_room(section, capsys):
    parts.show([section])
    out = capsys.readouterr().out
    for setting in settings_of(section):
        assert f"  {setting.key} " in out


def test_kinds_of_settings_are_in_words():
    (steps,) = [setting for setting in settings_of("trainer") if setting.key.endswith("max_steps")]
    assert steps.kind == "integer or null, at least 1"
    assert steps.default == "null"
    (speed,) = [setting for setting in settings_of("loader") if setting.key.endswith("speed")]
    assert speed.kind == "list of numbers, between 0.2 and 5"
    assert speed.default == "[0.9,0.95,1.0,1.05,1.1]"
