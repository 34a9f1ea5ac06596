"""Ways to break a cache's folder."""


def cut(name):
    """The last byte of a file is missing."""

    def damage(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])

    return damage


def drop(name):
    """A file is missing."""
    return lambda folder: (folder / name).unlink()
