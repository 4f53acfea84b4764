"""Values of a config held against annotations."""

from __future__ import annotations

import pytest

from ldae.config.schema import conform
from ldae.core.errors import ConfigError
from ldae.core.types import Count, Fraction, PossiblyEmpty


@pytest.mark.parametrize("hint", [list[int], list[Count] | None, tuple[int, ...]])
def test_a_list_needs_an_entry_unless_its_annotation_says_otherwise(hint):
    with pytest.raises(ConfigError, match=r"^t=\[\] must have at least one entry$"):
        conform("t", [], hint)
    assert conform("t", [], PossiblyEmpty[int]) == []
    assert conform("t", [], PossiblyEmpty[int] | None) == []
    assert conform("t", [3], PossiblyEmpty[int]) == [3]


def test_a_tuple_of_fixed_length_needs_as_many_entries():
    assert conform("betas", [0, 0.9], tuple[Fraction, Fraction]) == (0.0, 0.9)
    with pytest.raises(ConfigError, match=r"betas=\[0.9\] must have 2 entries"):
        conform("betas", [0.9], tuple[Fraction, Fraction])
