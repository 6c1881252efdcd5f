"""Frozen dataclasses of settings with a JSON round trip."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Self

from .validation import number, refuse


class Config:
    """JSON round trip for frozen dataclasses; unknown keys are refused by name."""

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, ready for ``json.dump``."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises ``ValueError`` for a setting that this class does not have and for a value of another kind.
        """
        defaults = cls._defaults(values)
        made = {
            name: type(defaults[name]).from_dict(value)
            if isinstance(value, dict) and isinstance(defaults[name], Config)
            else value
            for name, value in values.items()
        }
        return cls().replace(**made)

    def replace(self, **changes: Any) -> Self:
        """A copy with some settings changed, validated like any other. Raises ``ValueError`` as :meth:`from_dict`."""
        for name, default in self._defaults(changes).items():
            kind = next(kind for kind in KINDS if isinstance(default, kind))
            if not isinstance(changes[name], kind) or (isinstance(changes[name], bool) and kind is not bool):
                refuse(name, changes[name], KINDS[kind])
            if kind in (Integral, Real):
                changes[name] = number(name, changes[name])
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    @classmethod
    def _defaults(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The default of every setting that is named."""
        blank = cls()
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(f"{cls.__name__} has no setting {', '.join(unknown)}; it has {', '.join(names)}")
        return {name: getattr(blank, name) for name in values}


KINDS: dict[type, str] = {
    bool: "true or false",
    Integral: "a whole number",
    Real: "a number",
    str: "text",
    dict: "an object",
    Config: "an object of settings",
}
