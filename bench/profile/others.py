"""What other programs take of the processor while something is measured, from the kernel's own count (Linux)."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter, process_time

STAT = Path("/proc/stat")
IDLE, WAITING = 3, 4
"""Places of the times that nobody takes (proc_stat(5)); guests' times are counted twice, from place 8 on."""
COUNTED = 8


class Others:
    """CPU time of all other programs since the last `share`, as a share of all cores."""

    def __init__(self) -> None:
        self._cores = os.cpu_count() or 1
        self._last = self._now()

    def share(self) -> float:
        """From 0 to 1; 0 where the system does not tell. Counts in ticks of 10 ms: of use from half a second on."""
        before, self._last = self._last, self._now()
        wall_s, busy_s, own_s = (after - earlier for earlier, after in zip(before, self._last, strict=True))
        return min(1.0, max(0.0, busy_s - own_s) / (wall_s * self._cores)) if wall_s > 0 else 0.0

    def _now(self) -> tuple[float, float, float]:
        return perf_counter(), _busy_s(), process_time()


def _busy_s() -> float:
    """Seconds that all cores together have worked since the machine started."""
    try:
        name, *counts = STAT.read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    if name != "cpu":
        return 0.0
    ticks = [int(count) for count in counts[:COUNTED]]
    return (sum(ticks) - ticks[IDLE] - ticks[WAITING]) / os.sysconf("SC_CLK_TCK")
