"""The pages that are made from the code, and the commands that a page shows."""

import keys
import pytest

COMMENTED = [path for pattern in ("*.yaml", "algo/*.yaml", "noise/*.yaml") for path in keys.CONFIGS.glob(pattern)]


def test_the_page_of_keys_is_up_to_date():
    assert keys.PAGE.read_text(encoding="utf-8") == keys.page(), "python scripts/keys.py writes docs/keys.md"


@pytest.mark.parametrize("path", COMMENTED, ids=lambda path: path.stem)
def test_every_key_has_a_comment(path):
    found = list(keys.keys(path))
    assert found
    assert [key.name for key in found if not key.comment] == []


@pytest.mark.parametrize("path", [*keys.CONFIGS.glob("experiment/*.yaml")], ids=lambda path: path.stem)
def test_every_preset_says_what_it_is(path):
    assert keys.header(path)


def test_a_key_is_what_its_line_says(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text('# What.\n# More.\na: {}  # one\nb:\n  c: "#"  # two\n  d: [1, 2]\ndefaults: [x]\n')
    assert list(keys.keys(path)) == [("a", "{}", "one"), ("b.c", '"#"', "two"), ("b.d", "[1, 2]", "")]
    assert keys.header(path) == "What. More."
