"""The version, which manifests record."""

__version__ = '0.1.0'
