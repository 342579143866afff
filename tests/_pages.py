"""The documentation's pages and the code on them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "write_an_optimizer.md"
FROM_PYTHON = ROOT / "docs" / "from_python.md"
MONITOR = ROOT / "docs" / "monitor.md"
OWN_PROBLEM = ROOT / "docs" / "your_own_problem.md"
EXECUTED = TUTORIAL, OWN_PROBLEM
"""Pages whose specs name classes that stand on the page."""


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.M | re.S)
