"""Rows as TensorBoard's events."""

from tensorboardX import SummaryWriter

from .logs import About, AbstractLog, Scalars


def refusal() -> str:
    """Files need nobody's leave."""
    return ""


class TensorBoardLog(AbstractLog):
    """Event files in the folder `tensorboard` of the run directory.

    Each process is a run of TensorBoard's, so that charts have the processes side by side. What
    earlier files have from the first step to come on is purged by the new ones.
    """

    def __init__(self, about: About):
        self._folder = about.run_dir / "tensorboard"
        self._purge = about.since or None
        # files are told apart by the second in which they are opened, which may be the same
        self._suffix = f".from-{about.since:09d}"
        self._writers: dict[str, SummaryWriter] = {}

    def write(self, step: int, scalars: Scalars) -> None:
        """Take the scalars of a row."""
        for process, numbers in scalars.items():
            for name, value in numbers.items():
                self._writer(process).add_scalar(name, value, step)

    def flush(self) -> None:
        """Write the events to their files."""
        for writer in self._writers.values():
            writer.flush()

    def close(self, failed: bool) -> None:
        """Write the events and close the files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, process: str) -> SummaryWriter:
        if process not in self._writers:
            folder = str(self._folder / process)
            self._writers[process] = SummaryWriter(
                folder, purge_step=self._purge, filename_suffix=self._suffix
            )
        return self._writers[process]


open_log = TensorBoardLog
