"""The FUSE mount: a file system over the engine. ``docs/SEMANTICS.md`` is its contract."""
