"""``NamedTuple``: that of ``typing``, without its look at each annotation.

That look compiles every annotation that is a string. The named tuples of one fold have two
hundred of them, which would be a fiftieth of all that a small fold costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["NamedTuple"]

if TYPE_CHECKING:
    from typing import NamedTuple
else:
    import collections

    class _Type(type):
        def __new__(cls, name, bases, namespace):
            if not bases:
                return super().__new__(cls, name, bases, namespace)
            fields = namespace["__annotations__"]
            defaults = [namespace.pop(field) for field in fields if field in namespace]
            module = namespace.pop("__module__")
            made = collections.namedtuple(name, fields, defaults=defaults, module=module)
            for key, value in namespace.items():
                setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Type):
        """The base of a named tuple, whose fields are the annotations in its body."""
