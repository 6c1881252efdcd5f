"""A stand-in for Ray: actors that run in this thread, whose processes die when a test wants it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(f"traceback of {cause}")
        self.cause = cause


class Reference:
    def __init__(self, actor: Actor, call: Callable[[], Any]) -> None:
        self.actor, self.call = actor, call


class Actor:
    """``actor.method.remote(…)`` gives a reference; the call runs when its result is asked for."""

    def __init__(self, made: Any) -> None:
        self.made, self.dead = made, False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.made, name)
        return SimpleNamespace(remote=lambda *arguments: Reference(self, lambda: method(*arguments)))


class Ray:
    """``kills(method, arguments)`` says whether the process of the actor dies in this call."""

    def __init__(self, seed: int = 0) -> None:
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self.random, self.actors, self.most = random.Random(seed), [], 0
        self.taken: dict[str, float] = {}

    def remote(self, kind: type) -> Any:
        def options(**taken: float) -> Any:
            self.taken = taken
            return SimpleNamespace(remote=make)

        def make(*arguments: Any) -> Actor:
            self.actors.append(Actor(kind(*arguments)))
            return self.actors[-1]

        return SimpleNamespace(options=options)

    def wait(self, references: Sequence[Reference]) -> tuple[list[Reference], list[Reference]]:
        assert references, "nothing to wait for"
        self.most = max(self.most, len(references))
        first = self.random.choice(references)
        return [first], [reference for reference in references if reference is not first]

    def get(self, reference: Reference) -> Any:
        if reference.actor.dead:
            raise RayError("the actor is dead")
        try:
            return reference.call()
        except ProcessLookupError:
            reference.actor.dead = True
            raise RayError("the process ended") from None
        except Exception as error:
            raise RayTaskError(error) from None

    def kill(self, actor: Actor) -> None:
        actor.dead = True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 5.0}}, {"Alive": False, "Resources": {"GPU": 8.0}}]
