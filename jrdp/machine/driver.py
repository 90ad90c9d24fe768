"""What the NVIDIA driver says: its CUDA version and the GPUs it lets this process see."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}

# CUresult values that a person can do something about.
_ERRORS = {
    35: "the driver is older than this CUDA library needs: update the NVIDIA driver",
    100: "the driver sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES",
    101: "CUDA_VISIBLE_DEVICES names a GPU that is not there",
    802: "the GPUs' fabric is not ready yet: nvidia-fabricmanager must be running",
    803: "the driver's library and kernel module differ: reboot, or reinstall the driver",
    804: "the CUDA compatibility package does not support this GPU: remove it from LD_LIBRARY_PATH",
    999: "the driver failed without saying why: reload the nvidia modules or reboot",
}


@dataclass(frozen=True)
class Driver:
    """`version` is the newest CUDA that the driver runs, as (major, minor); (0, 0) without a working driver."""

    version: tuple[int, int]
    capabilities: tuple[int, ...]  # one per visible GPU: 90 for compute capability 9.0
    problem: str = ""

    @property
    def usable(self) -> bool:
        return not self.problem


def read_driver(library: str = "libcuda.so.1") -> Driver:
    """Ask the driver's library; creates no context on any GPU."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return Driver((0, 0), (), "no NVIDIA driver is installed (libcuda.so.1 was not found)")
    code = cuda.cuInit(0)
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    version = (number.value // 1000, number.value % 1000 // 10)
    if code:
        return Driver(version, (), _ERRORS.get(code, f"the NVIDIA driver failed with error {code}"))
    count = ctypes.c_int()
    code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code or count.value < 1:
        return Driver(version, (), _ERRORS.get(code or 100, f"counting the GPUs failed with error {code}"))
    capabilities = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        capabilities.append(10 * major.value + minor.value)
    return Driver(version, tuple(capabilities))
