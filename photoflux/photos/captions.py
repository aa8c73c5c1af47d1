"""One plain sentence per photo: trigger and class noun for the subject, words for everything around it.

What a caption names, the base can keep apart from the subject; what it leaves out is learnt as the subject.
"""

from __future__ import annotations

import colorsys
import re

import numpy as np
from PIL import Image

from photoflux.photos.inspect import background_pixels
from photoflux.photos.words import plain_words
from photoflux.wording import with_article

ARTICLES = "(?:an?|the|my|our|your|his|her|their|one|this)"
JOINING = "(?:of|and|with|in|on|at|by|beside|near|under|over)"
GREY_SATURATION = 0.16
HUES = {
    15: "red",
    45: "orange",
    70: "yellow",
    165: "green",
    255: "blue",
    290: "purple",
    340: "pink",
    361: "red",
}
"""Colour words and the hue, in degrees, below which they hold."""


def caption_for(image: Image.Image, *, trigger: str, class_noun: str, written: str = "") -> str:
    """The caption of a photo: what a person wrote about it, with the trigger put in, or a description of its
    surroundings and light.
    """
    words = plain_words(written)
    if words:
        return with_trigger(words, trigger=trigger, class_noun=class_noun)
    return f"a photo of {trigger} {class_noun} {surroundings(image)}"


def with_trigger(text: str, *, trigger: str, class_noun: str) -> str:
    """Put the trigger where a caption names the subject.

    An article and up to four words before the class noun describe the subject itself and give way to the
    trigger: "my small brown dog on a sofa" becomes "sks dog on a sofa". A caption that names no subject gets
    it in front.
    """
    if re.search(rf"\b{re.escape(trigger)}\b", text, re.IGNORECASE):
        return text
    noun = re.escape(class_noun)
    looks = rf"(?:(?!{ARTICLES}\b|{JOINING}\b)[\w'-]+\s+){{0,4}}"
    named = rf"\b{ARTICLES}\s+{looks}{noun}\b|\b{noun}\b"
    found, times = re.subn(named, lambda _match: f"{trigger} {class_noun}", text, count=1, flags=re.IGNORECASE)
    return found if times else f"a photo of {trigger} {class_noun}, {text}"


def surroundings(image: Image.Image) -> str:
    """Background and, where unusual, light, in words that small bases know: "with a white background"."""
    colour = colour_name(np.median(background_pixels(image), axis=0))
    light = float(np.asarray(image.convert("L").resize((64, 64))).mean()) / 255
    lit = " in bright light" if light > 0.75 else " in the dark" if light < 0.15 else ""
    return f"with {with_article(colour)} background{lit}"


def colour_name(rgb: np.ndarray) -> str:
    """The nearest plain colour word for an RGB colour of 0-255."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(np.asarray(rgb, dtype=np.float64) / 255))
    if value < 0.2:
        return "black"
    if saturation < GREY_SATURATION:
        return "white" if value > 0.8 else "grey"
    word = next(name for limit, name in HUES.items() if hue * 360 < limit)
    return "brown" if word in ("red", "orange", "yellow") and value < 0.55 else word
