"""What is compiled here runs for moments, so XLA need not optimise it."""

import jax
import pytest


@pytest.fixture(autouse=True, scope='package')
def compile_fast():
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)
