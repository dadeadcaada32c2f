"""What a load has done so far, kept so that no crash makes it lose or repeat a rejection."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from duostore_server.cli.load_checkpoint import Checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from duostore_server.cli.load_checkpoint import Job
    from duostore_server.cli.load_disk import Disk
    from duostore_server.cli.load_lines import Line

_PROGRESS_SUFFIX: Final = ".load-progress"
_REJECTED_SUFFIX: Final = ".rejected"


class LoadRefusedError(Exception):
    """A load cannot begin, or not go on from where it was; the text says what to do."""


class Journal:
    """Takes note of finished lines; ``keep`` makes what was noted safe.

    Two files stand beside the input. ``.rejected`` takes each rejected line as it comes.
    ``.load-progress`` says which lines are finished and how many bytes of ``.rejected``
    belong to them; it is replaced as a whole, and only once those bytes are safe. After
    a crash whatever stands behind them is of lines that are not finished, and goes.
    """

    def __init__(
        self, disk: Disk, source: Path, start: Checkpoint, *, has_begun: bool = False
    ) -> None:
        """``has_begun`` tells whether ``start`` is safe already."""
        self._disk = disk
        self._rejected = rejected_path(source)
        self._progress = progress_path(source)
        self._job = start.job
        self.load_id = start.load_id
        self._beyond = dict(start.beyond)
        self._rejected_bytes = start.rejected_bytes
        self._is_kept = True
        self._has_begun = has_begun
        self._began_here = False
        self.counts = start.counts
        self.line = start.line
        self.offset = start.offset

    def begin(self) -> None:
        """Make safe what load this is, before anything is sent in its name.

        What an earlier load rejected stays until this one has finished a line.
        """
        if not self._has_begun:
            self._has_begun = self._began_here = True
            self._keep_progress()

    def withdraw(self) -> None:
        """Take back that the load began, if that was by ``begin``: it came to nothing.

        Only for a load of which certainly no line was finished or saved.
        """
        if self._began_here:
            _forget(self._disk, self._progress)

    def is_finished(self, line: Line) -> bool:
        """Tell whether the line is finished already."""
        return line.number <= self.line or line.number in self._beyond

    def saved(self, line: Line, *, pending: bool) -> None:
        """Note that the line was saved; ``pending`` if not every reader sees it yet."""
        self.counts.saved += 1
        self.counts.pending += pending
        self._finish(line)

    def existed(self, line: Line) -> None:
        """Note that the line's entity exists and was left as it is."""
        self.counts.existed += 1
        self._finish(line)

    def passed(self, line: Line) -> None:
        """Note that nothing stands in the line."""
        self.counts.blank += 1
        self._finish(line)

    def reject(self, line: Line, reason: str) -> None:
        """Put the line into the file of rejected lines, with the reason."""
        record = {
            "line": line.number,
            "reason": reason,
            # Bytes that are no UTF-8 stand there as \xNN.
            "text": line.text.decode(errors="backslashreplace"),
        }
        data = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        self._disk.write(self._rejected, data, at=self._rejected_bytes)
        self._rejected_bytes += len(data)
        self.counts.rejected += 1
        self._finish(line)

    def keep(self) -> None:
        """Make all that was noted safe. Does nothing if nothing was."""
        if self._is_kept:
            return
        self._keep_rejected()
        self._keep_progress()
        self._is_kept = True

    def complete(self) -> None:
        """Note that no line is left: the rejected lines remain, the progress goes."""
        self._keep_rejected()
        _forget(self._disk, self._progress)

    def _finish(self, line: Line) -> None:
        self._is_kept = False
        self._beyond[line.number] = line.end
        while (end := self._beyond.pop(self.line + 1, None)) is not None:
            self.line += 1
            self.offset = end

    def _keep_progress(self) -> None:
        new = self._progress.with_name(f"{self._progress.name}.new")
        checkpoint = Checkpoint(
            job=self._job,
            load_id=self.load_id,
            line=self.line,
            offset=self.offset,
            beyond=self._beyond,
            counts=self.counts,
            rejected_bytes=self._rejected_bytes,
        )
        self._disk.write(new, checkpoint.encode(), at=0)
        self._disk.sync(new)
        self._disk.rename(new, self._progress)
        self._disk.sync_names(self._progress.parent)

    def _keep_rejected(self) -> None:
        size = self._disk.size(self._rejected)
        if self._rejected_bytes == 0:
            if size is not None:
                self._disk.remove(self._rejected)
                self._disk.sync_names(self._rejected.parent)
            return
        if size != self._rejected_bytes:
            self._disk.write(self._rejected, b"", at=self._rejected_bytes)
        self._disk.sync(self._rejected)
        self._disk.sync_names(self._rejected.parent)


def open_journal(disk: Disk, source: Path, job: Job, *, restart: bool, new_id: str) -> Journal:
    """Return the journal of a load, at the point where an earlier run of the job stopped.

    A load that begins gets the ``new_id``, which no other may have. Raises
    ``LoadRefusedError`` if there is one that this job cannot go on from, unless it is to
    ``restart``.
    """
    if restart:
        _forget(disk, progress_path(source))
    start = _checkpoint(disk, source, job)
    if start is None:
        # What an earlier load rejected is replaced with the first that this one finishes.
        return Journal(disk, source, Checkpoint(job, new_id))
    size = disk.size(rejected_path(source)) or 0
    if size < start.rejected_bytes:
        raise LoadRefusedError(
            f"{rejected_path(source)} has lost lines since the load was interrupted; put it back, "
            "or begin anew with --restart"
        )
    return Journal(disk, source, start, has_begun=True)


def progress_path(source: Path) -> Path:
    """Return where the progress of loading ``source`` is kept."""
    return source.with_name(source.name + _PROGRESS_SUFFIX)


def rejected_path(source: Path) -> Path:
    """Return where the rejected lines of ``source`` are put."""
    return source.with_name(source.name + _REJECTED_SUFFIX)


def _checkpoint(disk: Disk, source: Path, job: Job) -> Checkpoint | None:
    path = progress_path(source)
    text = disk.read(path)
    if text is None:
        return None
    try:
        found = Checkpoint.decode(text)
    except ValueError as error:
        raise LoadRefusedError(
            f"{path} cannot be read: {error}; begin anew with --restart"
        ) from error
    if found.job != job and not found.counts.lines:
        # It came to nothing, as one does whose command was mistyped.
        return None
    if found.job.input != job.input:
        raise LoadRefusedError(
            f"{source} was changed since its load was interrupted at line {found.line + 1}; "
            "put it back, or begin anew with --restart"
        )
    if differences := ", ".join(found.job.differences(job)):
        raise LoadRefusedError(
            f"an interrupted load of {source} is not resumed by this one: {differences}; "
            "say it as then, or begin anew with --restart"
        )
    return found


def _forget(disk: Disk, path: Path) -> None:
    disk.remove(path.with_name(f"{path.name}.new"))
    disk.remove(path)
    disk.sync_names(path.parent)
