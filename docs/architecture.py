"""Draw the rooms of the package and what they import: `python docs/architecture.py`.

What is drawn is what tests/test_layers.py reads off the source, less what follows from the rest:
arrows from `sweep` to `experiment` and from there to `task` stand for one from `sweep` to `task`.
"""

import runpy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
COLUMNS = {
    "precision": 0,
    "task": 0,
    "data": 1,
    "placement": 1,
    "losses": 2,
    "experiment": 2,
    "sweep": 2,
    "monitor": 3,
    "cli": 2,
    "errors": 2.5,
    "registry": 2.5,
    "models": 3,
    "spec": 3,
    "record": 3,
    "report": 3,
    "options": 4,
    "optimizers": 4,
    "engine": 4,
    "processes": 4,
    "hosts": 5,
    "cache": 6,
}
"""Where a room stands in its row."""
OUTSIDE = 5
"""Arrows to this column and beyond go past everything else."""
WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 112, 30, 136, 54, 12
# Boxes bring their own ground, and grey is seen on white and on black.
HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">
<title>Rooms of the package; arrows lead to what a room imports</title>
<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7"
orient="auto"><path d="M0 0 8 4 0 8z" fill="#888"/></marker></defs>
<g fill="none" stroke="#888" stroke-width="1.4" marker-end="url(#head)">"""
FONT = 'font-family="system-ui, sans-serif" font-size="15" text-anchor="middle"'


def rooms() -> tuple[list[str], dict[str, int], dict[str, set[str]]]:
    """The rooms from the top floor down, their floors, and which rooms each imports."""
    layers = runpy.run_path(str(ROOT / "tests" / "test_layers.py"))
    floors = {room: i for i, names in enumerate(layers["FLOORS"]) for room in sorted(names)}
    imports: dict[str, set[str]] = {room: set() for room in floors}
    for module, found in layers["IMPORTS"].items():
        if (room := layers["room"](module)) in floors:
            imports[room] |= {layers["room"](other) for other in found} & floors.keys() - {room}
    return list(floors), floors, imports


def reduced(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The imports that do not follow from others."""

    def beyond(room: str) -> set[str]:
        return set().union(*({other} | beyond(other) for other in imports[room]))

    return {
        room: {a for a in found if not any(a in beyond(b) for b in found - {a})}
        for room, found in imports.items()
    }


def draw(
    names: Sequence[str], floors: Mapping[str, int], imports: Mapping[str, set[str]]
) -> Iterator[str]:
    """The lines of the picture."""
    right, bottom = max(COLUMNS.values()), max(floors.values())
    yield HEAD.format(
        width=right * ACROSS + WIDTH + 2 * MARGIN, height=bottom * DOWN + HEIGHT + 2 * MARGIN
    )

    def place(room: str) -> tuple[float, float]:
        return MARGIN + COLUMNS[room] * ACROSS + WIDTH / 2, MARGIN + floors[room] * DOWN

    for room in names:
        for other in sorted(imports[room]):
            (x, y), (to_x, to_y) = place(room), place(other)
            below = to_y + HEIGHT
            if COLUMNS[other] >= OUTSIDE > COLUMNS[room]:
                yield f'<path d="M{x + WIDTH / 2:g} {y + HEIGHT / 2:g} H{to_x:g} V{below:g}"/>'
            else:
                yield f'<path d="M{x:g} {y:g} L{to_x:g} {below:g}"/>'
    yield '</g>\n<g fill="#eceff1" stroke="#546e7a">'
    for room in names:
        x, y = place(room)
        yield f'<rect x="{x - WIDTH / 2:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>'
    yield f'</g>\n<g fill="#1c2429" {FONT}>'
    for room in names:
        x, y = place(room)
        yield f'<text x="{x:g}" y="{y + 20:g}">{room}</text>'
    yield "</g>\n</svg>"


def picture() -> str:
    """The picture as it should be."""
    names, floors, imports = rooms()
    return "\n".join(draw(names, floors, reduced(imports))) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture())
    print(PICTURE)
