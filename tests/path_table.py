"""A table of image files without labels, with what reading images needs of a data set, and quick to make."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PathTable:
    """A table of image files."""

    paths: tuple[str, ...]

    @property
    def column_names(self):
        return ["image"]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, column):
        """Return the undecoded images, the only column."""
        assert column == "image"
        return [{"path": path, "bytes": None} for path in self.paths]

    def select(self, rows):
        return PathTable(tuple(self.paths[row] for row in rows))


def table_of_paths(paths):
    """Return an unlabelled table of image files."""
    return PathTable(tuple(paths))
