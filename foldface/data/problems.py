"""The list of what is wrong with the data, which becomes rejected.csv."""

from pathlib import Path

from foldface.files import InputError


class Problems:
    """What is wrong with the data, in the order in which it was met: file, row, reason."""

    def __init__(self) -> None:
        self.rows, self.photos = [], 0

    def add(self, file: Path | str, row: int | None, reason: str, photos: int = 1) -> None:
        """file: the table or photo; row: its line there (1 is the header), or None; photos: how many it stood for."""
        self.photos += photos
        self.rows.append({"file": str(file), "row": row, "reason": reason})

    def stop_if_strict(self, strict: bool) -> None:
        """Raise InputError for the first of them, counting the others."""
        if strict and self.rows:
            first, more = self.rows[0], len(self.rows) - 1
            at = f", row {first['row']}" if first["row"] else ""
            raise InputError(
                f"{first['file']}{at}: {first['reason']}"
                + (f" (and {more} more like this)" if more else "")
                + "; mend it, or leave such rows out with --data.strict false"
            )
