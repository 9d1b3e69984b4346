"""How many ids one request may ask for. A proxy's limit on headers decides, and nobody says what that is.

Ids are those of data sessions, or of the datatypes of one.
"""

import msgspec

MOST_IDS = 20
FIRST_SIZE = 7
"""Ids with which the answer's `Link` header, which repeats the query up to five times, passes a stock nginx."""

GOOD_BEFORE_GROWTH = 3
"""Full batches that have to pass before more ids are tried."""

FAILURE_COUNTS_FOR = 3600.0
"""Seconds after which a size that failed is tried again."""


class BatchSize(msgspec.Struct, frozen=True):
    """The size in use, at `most` so many; the largest one that has passed, and the smallest one that failed lately."""

    ids: int = FIRST_SIZE
    most: int = MOST_IDS
    passed: int = 0
    failed: int | None = None
    failed_at: float = 0.0
    good: int = 0

    def after_success(self, ids: int, *, now: float) -> "BatchSize":
        """So many ids have passed. Only what fills the size says that there is room for more.

        By half while nothing has failed lately, for batches that are planned ahead grow slowly; else by one.
        """
        passed = max(self.passed, ids)
        if ids < self.ids:
            return msgspec.structs.replace(self, passed=passed)
        good = self.good + 1
        failed = self.failed if 0 <= now - self.failed_at < FAILURE_COUNTS_FOR else None
        most = self.most if failed is None else min(self.most, failed - 1)
        if good < GOOD_BEFORE_GROWTH or self.ids >= most:
            return msgspec.structs.replace(self, passed=passed, failed=failed, good=good)
        ids = min(most, self.ids + (max(1, self.ids // 2) if failed is None else 1))
        return msgspec.structs.replace(self, ids=ids, passed=passed, failed=failed, good=0)

    def after_failure(self, ids: int, *, now: float) -> "BatchSize":
        """So many ids were too many, while the cloud answers: back to what passed, else to a half.

        Where as many have passed, it is the answer that was longer this time: a quarter less.
        """
        failed = ids if self.failed is None else min(ids, self.failed)
        smaller = ids * 3 // 4 if self.passed >= ids else self.passed or ids // 2
        ids, passed = min(self.ids, max(1, smaller)), min(self.passed, smaller)
        return msgspec.structs.replace(self, ids=ids, passed=passed, failed=failed, failed_at=now, good=0)
