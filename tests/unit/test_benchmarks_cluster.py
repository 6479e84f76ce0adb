"""The verdicts of the cluster's benchmark."""

from __future__ import annotations

import pytest

from benchmarks.cluster_report import Figure


@pytest.mark.parametrize(
    ("value", "least", "most", "reached"),
    [(70, 0.7, None, True), (69, 0.7, None, False), (300, None, 3, True), (301, None, 3, False)],
)
def test_a_figure_is_judged_by_its_ratio(
    value: float, least: float | None, most: float | None, reached: bool
) -> None:
    figure = Figure(
        name="f", unit="u", value=value, compared="c", other=100, ratio_min=least, ratio_max=most
    )
    assert figure.reached is reached


def test_without_something_to_compare_with_a_limit_is_not_kept() -> None:
    figure = Figure(name="f", unit="u", value=1, compared="c", other=0, ratio_max=3)
    assert not figure.reached
