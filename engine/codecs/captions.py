"""What a text encoder reads of a prompt: the captions of Open-Sora 1.2, cleaned as those that it was trained on.

``scripts/inference.py`` of Open-Sora appends ``aesthetic score: 6.5.`` to a prompt that names no score of its own and
then cleans it twice: lower case, no addresses, no markup, plain quotes and dashes. The rules are DeepFloyd's, which
diffusers' PixArt pipeline has too; Open-Sora also takes the spaces off both ends between them.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import cache
from types import FunctionType, SimpleNamespace

OPEN_SORA = "open-sora-1.2"
SCORE, SCORE_NAME = " aesthetic score: 6.5.", "aesthetic score:"


def caption_style(name: object) -> Callable[[str], str] | None:
    """The function that makes a prompt a caption of the style ``name``; None for no name.

    Raises ``ValueError`` for another style and for libraries that are missing.
    """
    if name is None:
        return None
    if name != OPEN_SORA:
        raise ValueError(f"the caption style is {name!r}; it must be {OPEN_SORA}, or left out")
    _cleaner()
    return open_sora_caption


def open_sora_caption(prompt: str) -> str:
    """A prompt with its score, cleaned twice."""
    clean = _cleaner()
    return clean(clean(prompt if SCORE_NAME in prompt else prompt + SCORE))


@cache
def _cleaner() -> Callable[[str], str]:
    try:
        import bs4  # noqa: F401
        import ftfy  # noqa: F401
        from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as pixart
    except ImportError as error:
        raise ValueError(
            f"prompts of Open-Sora need {error.name}; install it with `pip install syncflow[codecs]`"
        ) from None
    pipeline = pixart.PixArtAlphaPipeline
    stripping = SimpleNamespace(unescape=lambda text: html.unescape(text).strip())
    rules = FunctionType(pipeline._clean_caption.__code__, vars(pixart) | {"html": stripping})
    return lambda caption: rules(pipeline, caption)
