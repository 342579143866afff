"""What the theme's pages lack for readers with a screen reader."""


def on_post_page(output, page, config):
    """MkDocs calls it with a finished page."""
    return output.replace('role="dialog">', 'role="dialog" aria-label="Search">')
