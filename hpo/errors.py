"""What can be wrong with what the user asks of the search. Each message is one line: value, rule, way out."""

import errno

DISK_TROUBLE = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
                errno.ENAMETOOLONG, errno.ELOOP, errno.EIO)


class SearchError(ValueError):
    """Something asked of the search cannot be done; the message names the flag, its value, the rule and the way out."""


class BadSetting(SearchError):
    """A flag or a line of the TOML file has a value that is not allowed."""


class DiskTrouble(SearchError):
    """A file cannot be written, for a reason that the next trial would meet too."""

    def __init__(self, error: OSError):
        super().__init__(f"{error.filename or 'a file'} cannot be written ({error.strerror}): free some space or choose another folder; "
                         "finished trials are safe in the database")
