"""A few damaged files for each reader, the same ones each time; fuzz.py tries more."""

import pytest

from tests import fuzz

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('name', fuzz.TARGETS)
def test_damaged_files_are_parsed_or_refused_by_name(name):
    counts = fuzz.run(name, 10 if name.startswith('checkpoint') else 30)
    assert counts['refused'] > 0
