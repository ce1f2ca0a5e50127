"""jdkd distils dense passage retrievers in JAX."""

__version__ = '0.1.0'
