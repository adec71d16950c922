"""The package's version, alone in a module that a build can read without importing the rest."""

__version__ = "0.1.0"
