"""Which drivers of named jobs have been replaced, as far as this node knows.

The control store says so, but what the next driver submits may come first, from another node. So
whoever brings a task of a newer driver tells of the end of the older ones, and what is said of that
end later is no news: it must not take along what the newer one has submitted meanwhile.

Decides only what is news; what follows is the core's.
"""

from __future__ import annotations


class FencedDrivers:
    """Drivers of a job are numbered from 1; 0 stands for the driver of an unnamed job."""

    def __init__(self) -> None:
        #: Job -> up to which number its drivers are over, and the newest that was heard of.
        self._over: dict[int, int] = {}
        self._newest: dict[int, int] = {}

    def is_over(self, job: int, driver: int) -> bool:
        """Whether this driver was replaced, or has ended."""
        return 0 < driver <= self._over.get(job, 0)

    def arrived(self, job: int, driver: int) -> int:
        """Something of this driver came: the number up to which the others are to be dropped; 0:
        none."""
        if driver > self._newest.get(job, 0):
            self._newest[job] = driver
        return driver - 1 if driver - 1 > self._over.get(job, 0) else 0

    def end(self, job: int, driver: int) -> bool:
        """The drivers up to this number are over; False: that was known."""
        if self.is_over(job, driver):
            return False
        if driver:
            self._over[job] = driver
        return True

    def newest(self, job: int) -> int:
        """The newest of whom something came."""
        return self._newest.get(job, 0)
