"""Built pages are looked through: links lead somewhere, nothing is fetched from elsewhere."""

import logging
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_log = logging.getLogger("mkdocs.hooks.links")
_FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}
_LINKED = {"stylesheet", "icon", "preconnect", "prefetch", "preload"}


class _Page(HTMLParser):
    """Where the links of a page lead, what it fetches, and what can be linked to in it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.fetched, self.anchors = set(), set(), {""}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        if tag == "link" and _LINKED & set((given.get("rel") or "").split()):
            self.fetched.add(given["href"])
        if given.get(_FETCHED.get(tag, "")):
            self.fetched.add(given[_FETCHED[tag]])


def on_post_build(config):
    """MkDocs calls it at the end; a warning fails a strict build."""
    site = Path(config.site_dir)
    pages = {path: _Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        if path.name == "404.html":  # shown at any address: its links start at the root
            continue
        for url in sorted(page.links | page.fetched):
            if problem := _problem(url, path, pages, url in page.fetched):
                _log.warning("%s: %s %s", name, url, problem)


def _problem(url, path, pages, fetched):
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return "is fetched from elsewhere" if fetched and parts.scheme != "data" else ""
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file():
        return "leads nowhere"
    missing = target in pages and unquote(parts.fragment) not in pages[target].anchors
    return "has no such place" if missing else ""
