"""Text for terminals, spreadsheets and shells."""

import csv
import io
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from spatial_transformer.utils.text import csv_cell, printable, quote_override


@given(st.text(alphabet=st.characters(codec=None)), st.text())
def test_escaped_texts_are_printable_and_distinct(one, other):
    assert printable(one).isprintable()
    assert (printable(one) == printable(other)) == (one == other)


def test_ordinary_names_are_unchanged():
    assert printable("IMG (1) größe 東京.png") == "IMG (1) größe 東京.png"
    assert printable("a\x1b[31m\u202eb\n\udcff\\") == r"a\x1b[31m\u202eb\n\udcff\\"


def test_cell_is_not_a_formula():
    for text in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"):
        assert csv_cell(text) == f"'{text}"
    assert csv_cell("plain = text") == "plain = text"
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell('=HYPERLINK("x","y")')])
    assert file.getvalue().startswith("\"'=")


def test_quoted_override_survives_shell_and_hydra():
    assert quote_override("run", "runs/a-b_1/2026-01-01") == "run=runs/a-b_1/2026-01-01"
    for value in ("runs/[x]", "a b", "it's", 'a"b', "größe", "a=b", "a,b", "(1)", "{x}"):
        (word,) = shlex.split(quote_override("run", value))
        (override,) = OverridesParser.create().parse_overrides([word])
        assert override.value() == value
