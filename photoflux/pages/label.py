"""The page on which people label generated images."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from photoflux.manifest import to_json
from photoflux.pages.palette import CSS

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Label pictures</title>
<meta name="viewport" content="width=device-width">
<style>{colours}
body {{ margin: 0; background: var(--wash); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }}
header {{ position: sticky; top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--line); padding: 12px 24px;
  display: flex; gap: 20px; align-items: center; }}
header p {{ margin: 0; color: var(--soft); flex: 1; }}
button {{ background: var(--blue); color: var(--paper); border: 0; border-radius: 8px; padding: 9px 18px; font: inherit; cursor: pointer; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 16px; padding: 20px 24px; }}
article {{ background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 14px; }}
article.done {{ border-color: var(--good); }}
img {{ width: 100%; image-rendering: auto; border-radius: 8px; }}
fieldset {{ border: 0; padding: 0; margin: 10px 0 0; display: flex; flex-wrap: wrap; gap: 6px; }}
legend {{ color: var(--soft); font-size: 13px; padding: 0; float: left; width: 100%; }}
label span {{ display: inline-block; border: 1px solid var(--line); border-radius: 99px; padding: 2px 12px; cursor: pointer; }}
input {{ position: absolute; opacity: 0; }}
input:checked + span {{ background: var(--blue); border-color: var(--blue); color: var(--paper); }}
input:focus-visible + span {{ outline: 2px solid var(--blue); outline-offset: 2px; }}
</style></head><body>
<header><strong>Label what you see</strong>
<p><span id="done">0</span> of {count} pictures · go by the picture alone; "unsure" is a good answer</p>
<button id="save">Save labels.csv</button></header>
<main>{cards}</main>
<script>
const attributes = {attributes};
const articles = [...document.querySelectorAll("article")];
const chosen = (article, name) =>
  article.querySelector(`[data-attribute="${{name}}"] input:checked`)?.value ?? "";
function count() {{
  articles.forEach(a => a.classList.toggle("done", attributes.every(name => chosen(a, name))));
  document.getElementById("done").textContent = document.querySelectorAll("article.done").length;
}}
document.addEventListener("change", count);
document.getElementById("save").addEventListener("click", () => {{
  const rows = articles.map(a => [a.dataset.picture, ...attributes.map(name => chosen(a, name))].join(","));
  const text = [["picture", ...attributes].join(","), ...rows].join("\\n") + "\\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {{ type: "text/csv" }}));
  link.download = "labels.csv";
  link.click();
}});
</script></body></html>
"""


def labelling_page(pictures: Sequence[str], choices: Mapping[str, Sequence[str]]) -> str:
    """The page. It loads images from beside it, keeps choices in the browser, and saves them as labels.csv."""
    cards = "".join(
        f'<article data-picture="{picture}"><img src="{picture}" alt="picture {i + 1}" loading="lazy">'
        + "".join(_choices(i, name, values) for name, values in choices.items())
        + "</article>"
        for i, picture in enumerate(pictures)
    )
    return PAGE.format(cards=cards, count=len(pictures), attributes=to_json(list(choices)).strip(), colours=CSS)


def _choices(number: int, name: str, values: Sequence[str]) -> str:
    options = "".join(
        f'<label><input type="radio" name="{number}-{html.escape(name)}" value="{html.escape(value)}">'
        f"<span>{html.escape(value)}</span></label>"
        for value in values
    )
    return f'<fieldset data-attribute="{html.escape(name)}"><legend>{html.escape(name)}</legend>{options}</fieldset>'
