"""How much memory a new process may take."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")  # where a container sees its own limits, in version 2 or 1 of Linux's control groups
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def available_memory(meminfo: Path = Path("/proc/meminfo"), group: Path = _GROUP) -> int:
    """Bytes that can be had without swapping, within the limit of a container; 0 where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError, IndexError):
        return 0
    for limit, used in _LIMITS:
        with suppress(OSError, ValueError):  # "max": no limit
            available = min(available, int((group / limit).read_text()) - int((group / used).read_text()))
    return max(available, 0)
