"""What can be wrong with a call: one class per kind of mistake, each also the fitting builtin."""

from __future__ import annotations


class Error(Exception):
    """Base of all errors of mnemex. The message says what was given, what was expected, and what to do."""


class ArgumentError(Error, ValueError):
    """A number or word outside its range."""


class ShapeError(ArgumentError):
    """An array of the wrong shape."""


class DtypeError(Error, TypeError):
    """An argument of the wrong type, or an array whose type would lose bits."""


class RowError(Error, IndexError):
    """A row that is not there."""


class IdError(Error, KeyError):
    """An id that is not there."""

    __str__ = Exception.__str__  # KeyError shows the repr of its message


class NonFinite(ArgumentError):
    """NaN or infinity where finite numbers are due."""


class CapacityError(Error, ValueError):
    """More entries than the bank may hold."""


class StateError(Error, RuntimeError):
    """A call that does not fit the state of the bank."""


class ResourceError(Error, MemoryError, RuntimeError):
    """The machine cannot do it: memory, or an instruction set."""


class FormatError(Error, OSError):
    """A file that is truncated, altered, foreign, or cannot be read or written."""


class NotFoundError(FormatError, FileNotFoundError):
    """Nothing is saved at that path."""


class ExistsError(FormatError, FileExistsError):
    """Something is at that path already."""


class MissingDependency(Error, ImportError):
    """An optional package that is not installed."""


class Unsupported(Error, NotImplementedError):
    """A model, or a combination of options, that mnemex does not serve."""
