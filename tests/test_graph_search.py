"""Whatever a row's workflow is made of: it is refused in words, or reads and writes what is its own."""

from __future__ import annotations

import pytest

from tests.fuzzing import corpus, search, slice_of
from tests.promises_graphs import ROWS, is_refused_in_words_or_keeps_to_its_own


def test_every_graph_is_refused_or_keeps_to_its_own() -> None:
    for row in corpus("graphs"):
        is_refused_in_words_or_keeps_to_its_own(row)
    slice_of(is_refused_in_words_or_keeps_to_its_own, ROWS, 400)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_graphs_for_minutes_without_a_finding() -> None:
    assert search("graphs", is_refused_in_words_or_keeps_to_its_own, ROWS)
