"""The reference of three doors: what a bucket holds, as a dictionary of keys, and what each door
says to a step. S3 sees keys; the mount and WebDAV see the same keys as files and folders."""

from __future__ import annotations

import errno
from typing import NamedTuple


class Step(NamedTuple):
    door: str
    """``s3``, ``dav`` or ``mount``."""
    action: str
    """``put``, ``delete``, ``mkdir``, ``move``, ``copy``."""
    path: str
    to: str = ""
    overwrite: bool = True
    size: int = 0


OK = 0
"""What the mount and S3 answer when all went well; WebDAV has statuses for that too."""


class Tree:
    """A key that ends with a slash is a folder's own object; folders are also there when any
    key begins with them."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}

    def is_folder(self, path: str) -> bool:
        return not path or any(key.startswith(path + "/") for key in self.keys)

    def is_file(self, path: str) -> bool:
        return path in self.keys

    def exists(self, path: str) -> bool:
        return self.is_file(path) or self.is_folder(path)

    def below(self, path: str) -> list[str]:
        """Return the keys inside the folder, its own object left out."""
        return [key for key in self.keys if key.startswith(path + "/") and key != path + "/"]

    def apply(self, step: Step, data: bytes) -> int:
        """Do the step, or refuse it; return the door's answer: a status, or an errno."""
        door: S3Rules | DavRules | MountRules
        match step.door:
            case "s3":
                door = S3Rules(self)
            case "dav":
                door = DavRules(self)
            case _:
                door = MountRules(self)
        match step.action:
            case "put":
                return door.put(step.path, data)
            case "delete":
                return door.delete(step.path)
            case "mkdir":
                return door.mkdir(step.path)
            case "move":
                return door.move(step.path, step.to, overwrite=step.overwrite)
            case _:
                return door.copy(step.path, step.to, overwrite=step.overwrite)

    def copy_all(self, path: str, to: str) -> None:
        for key in [key for key in self.keys if key.startswith(path + "/")]:
            self.keys[to + key[len(path) :]] = self.keys[key]

    def remove_folder(self, path: str) -> None:
        for key in [key for key in self.keys if key.startswith(path + "/")]:
            del self.keys[key]

    def keep_folder(self, path: str) -> None:
        """A folder stays when the last that was in it goes through a door that knows folders."""
        if path and not self.is_folder(path):
            self.keys[path + "/"] = b""


def parent_of(path: str) -> str:
    return path.rpartition("/")[0]


class S3Rules:
    """S3 knows no folders: whatever it is told about keys it does."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def put(self, path: str, data: bytes) -> int:
        self._tree.keys[path] = data
        return 200

    def delete(self, path: str) -> int:
        self._tree.keys.pop(path, None)
        return 204

    def mkdir(self, path: str) -> int:
        self._tree.keys[path + "/"] = b""
        return 200

    def copy(self, path: str, to: str, *, overwrite: bool) -> int:
        if path not in self._tree.keys:
            return 404
        if path == to:
            return 400  # nothing would be changed by it
        if not overwrite and to in self._tree.keys:
            return 412
        self._tree.keys[to] = self._tree.keys[path]
        return 200

    def move(self, path: str, to: str, *, overwrite: bool) -> int:
        """As clients do it: a copy, then a delete."""
        status = self.copy(path, to, overwrite=overwrite)
        if status == 200:
            del self._tree.keys[path]
        return status


class DavRules:
    """Source: RFC 4918. A path that is a file and a folder is the folder."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def put(self, path: str, data: bytes) -> int:
        tree = self._tree
        if tree.is_folder(path):
            return 405
        if not tree.is_file(path) and not tree.is_folder(parent_of(path)):
            return 409
        new = not tree.is_file(path)
        tree.keys[path] = data
        return 201 if new else 204

    def delete(self, path: str) -> int:
        tree = self._tree
        if not tree.exists(path):
            return 404
        self._remove(path)
        tree.keep_folder(parent_of(path))
        return 204

    def _remove(self, path: str) -> None:
        """Remove the folder with all in it, or the file."""
        if self._tree.is_folder(path):
            self._tree.remove_folder(path)
        else:
            del self._tree.keys[path]

    def mkdir(self, path: str) -> int:
        if self._tree.exists(path):
            return 405
        if not self._tree.is_folder(parent_of(path)):
            return 409
        self._tree.keys[path + "/"] = b""
        return 201

    def copy(self, path: str, to: str, *, overwrite: bool) -> int:
        return self._transfer(path, to, overwrite=overwrite, move=False)

    def move(self, path: str, to: str, *, overwrite: bool) -> int:
        return self._transfer(path, to, overwrite=overwrite, move=True)

    def _transfer(self, path: str, to: str, *, overwrite: bool, move: bool) -> int:
        tree = self._tree
        if not tree.exists(path):
            return 404
        if path == to or path.startswith(to + "/"):
            return 403
        folder = tree.is_folder(path)
        if folder and to.startswith(path + "/"):
            return 403
        there = tree.exists(to)
        if there and not overwrite:
            return 412
        if not there and not tree.is_folder(parent_of(to)):
            return 409
        if folder:
            if there:
                self._remove(to)
            tree.copy_all(path, to)
            if move:
                tree.remove_folder(path)
            else:
                tree.keys.setdefault(to + "/", b"")
        else:
            if tree.is_folder(to):
                tree.remove_folder(to)
            tree.keys[to] = tree.keys[path]
            if move:
                del tree.keys[path]
        if move:
            tree.keep_folder(parent_of(path))
        return 204 if there else 201


class MountRules:
    """Source: POSIX; docs/SEMANTICS.md for what is left open there."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def _walk(self, path: str) -> int:
        """Return the error of looking for the path's parent, as the kernel goes there."""
        parts = path.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            folder = "/".join(parts[:count])
            if not self._tree.is_folder(folder):
                return errno.ENOTDIR if self._tree.is_file(folder) else errno.ENOENT
        return OK

    def put(self, path: str, data: bytes) -> int:
        if error := self._walk(path):
            return error
        if self._tree.is_folder(path):
            return errno.EISDIR
        self._tree.keys[path] = data
        return OK

    def delete(self, path: str) -> int:
        """``rm`` or ``rmdir``, as the path asks for."""
        tree = self._tree
        if error := self._walk(path):
            return error
        if tree.is_folder(path):
            if tree.below(path):
                return errno.ENOTEMPTY
            del tree.keys[path + "/"]
        elif tree.is_file(path):
            del tree.keys[path]
        else:
            return errno.ENOENT
        tree.keep_folder(parent_of(path))
        return OK

    def mkdir(self, path: str) -> int:
        if error := self._walk(path):
            return error
        if self._tree.exists(path):
            return errno.EEXIST
        self._tree.keys[path + "/"] = b""
        return OK

    def copy(self, path: str, to: str, *, overwrite: bool) -> int:
        """``cat path > to``."""
        tree = self._tree
        if error := self._walk(path):
            return error
        if not tree.exists(path):
            return errno.ENOENT
        if tree.is_folder(path):
            return errno.EISDIR
        if error := self._walk(to):
            return error
        if not overwrite and tree.exists(to):
            return errno.EEXIST
        return self.put(to, tree.keys[path])

    def move(self, path: str, to: str, *, overwrite: bool) -> int:
        """``rename``, whose ``overwrite`` is always true."""
        tree = self._tree
        if error := self._walk(path) or self._walk(to):
            return error
        if not tree.exists(path):
            return errno.ENOENT
        move = self._move_folder if tree.is_folder(path) else self._move_file
        error = move(path, to)
        if not error and parent_of(path) != parent_of(to):
            tree.keep_folder(parent_of(path))
        return error

    def _move_file(self, path: str, to: str) -> int:
        tree = self._tree
        if path.startswith(to + "/"):
            return errno.ENOTEMPTY
        if tree.is_folder(to):
            return errno.EISDIR
        if path != to:
            tree.keys[to] = tree.keys.pop(path)
        return OK

    def _move_folder(self, path: str, to: str) -> int:
        tree = self._tree
        if path == to:
            return OK
        if to.startswith(path + "/"):
            return errno.EINVAL
        if path.startswith(to + "/") or tree.below(to):
            return errno.ENOTEMPTY
        if tree.is_file(to) and not tree.is_folder(to):
            return errno.ENOTDIR
        tree.keys.pop(to + "/", None)
        tree.copy_all(path, to)
        tree.remove_folder(path)
        return OK


def file_name(part: str) -> str:
    """Return the name of a key's part (docs/SEMANTICS.md, "Names of keys")."""
    if part in ("", ".", "..", ".versions") or part.endswith(("%name", "%file", "%more")):
        return part.replace("%", "%25") + "%name"
    return part


class View(NamedTuple):
    """What one looks at through the mount and WebDAV."""

    files: dict[str, bytes]
    folders: set[str]


def view_of(tree: Tree) -> View:
    """Return the paths that the mount and WebDAV have to show."""
    files: dict[str, bytes] = {}
    folders: set[str] = set()
    for key, data in tree.keys.items():
        parts = [file_name(part) for part in key.removesuffix("/").split("/")]
        inner = parts if key.endswith("/") else parts[:-1]
        folders.update("/".join(inner[:count]) for count in range(1, len(inner) + 1))
        if not key.endswith("/"):
            mark = "%file" if tree.is_folder(key) else ""
            files["/".join(parts) + mark] = data
    return View(files, folders)
