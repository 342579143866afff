"""Pages that stand at the root of the repository, where their readers look for them."""

from pathlib import Path

from mkdocs.structure.files import File

_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")


def on_files(files, config):
    """MkDocs calls it with the files of the site."""
    root = Path(config.config_file_path).parent
    for name in _PAGES:
        content = (root / name).read_text().replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """MkDocs calls it with the text of a page."""
    for name in _PAGES:
        markdown = markdown.replace(f"](../{name}", f"]({name.lower()}")
    return markdown
