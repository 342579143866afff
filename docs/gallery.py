"""Run specs of the paper and keep one figure of each, for docs/gallery.md.

    python docs/gallery.py [SPEC ...] [--runs FOLDER]

Without names it makes those that take up to a few minutes each on two cores. Runs that are in the
folder already are not run again.
"""

import argparse
from pathlib import Path

from PIL import Image

from centralflow_eqx.cli import main

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
FIGURES = {
    "sharpness": "several/figures/eigenvalues.png",
    "covariance": "gd/figures/variances.png",
    "effective_step": "figures/effective_step.png",
    "learning_rates": "figures/loss_sharpness.png",
    "ablated_rmsprop": "figures/loss.png",
    "predictions": "figures/nu.png",
    "beta2": "figures/stabilisation.png",
    "accuracy": "figures/closeness.png",
}
"""The figure of a spec's run directory that shows what the spec is about."""
WIDTH, COLOURS = 900, 96


def picture(spec: str, runs: Path) -> Path:
    """A small copy of the spec's figure, as it came out of a run."""
    figure = runs / spec / FIGURES[spec]
    if not figure.exists():
        code = main(["run", str(ROOT / f"specs/paper/{spec}.yaml"), "--set", f"output.dir={runs}"])
        if code:
            raise SystemExit(code)
    with Image.open(figure) as image:
        height = round(image.height * WIDTH / image.width)
        small = image.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    PICTURES.mkdir(exist_ok=True)
    path = PICTURES / f"{spec}.png"
    small.quantize(COLOURS).save(path, optimize=True)
    return path


def cli() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("specs", metavar="SPEC", nargs="*", default=list(FIGURES), help="a name")
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"), help="folder of runs")
    given = parser.parse_args()
    if unknown := set(given.specs) - set(FIGURES):
        parser.error(f"no figure of {', '.join(sorted(unknown))} is kept")
    for spec in given.specs:
        path = picture(spec, given.runs)
        print(f"{path} ({path.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    cli()
