"""The table of misclassified samples."""

import csv

from conftest import SHORT

from spatial_transformer.training.runner import train


def test_the_table_lists_the_misclassified_samples_most_confident_first(
    composed, drawn_mnist, tmp_path
):
    result = train(composed(*SHORT, "data.root=.", "logger=none"))
    with (tmp_path / "run" / "crops" / "mistakes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["test sample"]) for row in rows) == result["misclassified"] != []
    assert all(row["label"] != row["prediction"] for row in rows)
    assert all(int(row["label"]) == int(row["test sample"]) % 10 for row in rows)
    confidences = [float(row["confidence"]) for row in rows]
    assert confidences == sorted(confidences, reverse=True)
