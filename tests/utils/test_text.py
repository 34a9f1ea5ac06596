"""Text from files of other people."""

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from spatial_transformer.utils.text import csv_cell, printable


@given(st.text(alphabet=st.characters(codec=None)), st.text())
def test_escaped_text_is_printable_and_stays_different(one, other):
    assert printable(one).isprintable()
    assert (printable(one) == printable(other)) == (one == other)


def test_ordinary_names_stay_as_they_are():
    assert printable("IMG (1) größe 東京.png") == "IMG (1) größe 東京.png"
    assert printable("a\x1b[31m\u202eb\n\udcff\\") == r"a\x1b[31m\u202eb\n\udcff\\"


def test_a_cell_is_no_formula():
    for text in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"):
        assert csv_cell(text) == f"'{text}"
    assert csv_cell("plain = text") == "plain = text"
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell('=HYPERLINK("x","y")')])
    assert file.getvalue().startswith("\"'=")
