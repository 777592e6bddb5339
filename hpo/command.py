"""How every command ends: what the user can mend is one line on standard error and exit status 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from hpo.errors import SearchError
from metrics.errors import MetricError
from storage.errors import StorageError
from trainers.errors import TrainerError

USAGE = 2


def one_line_errors(main: Callable[[], int]) -> int:
    """Run a command; gives its exit status."""
    try:
        return main()
    except (SearchError, TrainerError, MetricError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        print(f"error: {error.filename or 'a file'} cannot be written ({error.strerror}): free some space or choose another folder; "
              "finished trials are safe in the database", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return USAGE
