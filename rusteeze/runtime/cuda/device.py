"""Which GPU to use, and which of an artifact's machine code it runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rusteeze.errors import UserError
from rusteeze.runtime.cuda.driver import DeviceAttribute, NoDevice, call, start

NAME_BYTES = 128
_NAME = re.compile(r"cuda(:auto|:[0-9]{1,4})?")


@dataclass(frozen=True)
class Device:
    """A GPU. ``shared_bytes``: dynamic shared memory that a block may have at most."""

    ordinal: int
    name: str
    major: int
    minor: int
    shared_bytes: int

    @property
    def label(self) -> str:
        return f"cuda:{self.ordinal}"

    @property
    def architecture(self) -> str:
        return f"sm_{self.major}{self.minor}"


def choose_device(wanted: str, architectures: Sequence[str] = ()) -> Device:
    """``cuda:1`` is that device, ``cuda`` or ``cuda:auto`` the one of the newest architecture, the first
    among equals, of those that run code for one of ``architectures`` where there are such; numbers are the
    driver's, within CUDA_VISIBLE_DEVICES. NoDevice when there is none."""
    if not _NAME.fullmatch(wanted):
        raise UserError(f"device is {wanted!r}; expected cuda, cuda:auto or cuda:0")
    start()
    count = int(call("cuDeviceGetCount"))
    if not count:
        raise NoDevice("the NVIDIA driver finds no GPU; use --device cpu")
    number = wanted.partition(":")[2]
    if not number or number == "auto":
        devices = [_describe(ordinal) for ordinal in range(count)]
        devices = [d for d in devices if _fitting(d, architectures)] or devices
        return max(devices, key=lambda d: (d.major, d.minor, -d.ordinal))
    if int(number) >= count:
        names = ", ".join(f"cuda:{n}" for n in range(count))
        raise NoDevice(f"there is no device cuda:{int(number)}; there are {names}")
    return _describe(int(number))


def choose_architecture(device: Device, architectures: Sequence[str]) -> str:
    """The newest of ``architectures`` ("sm_89") that is not above the device's own and of the same
    major number: machine code runs on later minor numbers only. UserError when there is none."""
    fitting = _fitting(device, architectures)
    if not fitting:
        have = ", ".join(architectures) or "none"
        raise UserError(f"{device.name} is {device.architecture}, which cannot run code for {have}")
    return max(fitting)[1]


def _fitting(device: Device, architectures: Sequence[str]) -> list[tuple[int, str]]:
    """Minor number and name of those whose code the device runs."""
    numbered = [(*divmod(int(name.removeprefix("sm_")), 10), name) for name in architectures]
    return [(minor, name) for major, minor, name in numbered if major == device.major and minor <= device.minor]


def _describe(ordinal: int) -> Device:
    handle = call("cuDeviceGet", ordinal)

    def attribute(name: str) -> int:
        member = getattr(DeviceAttribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(call("cuDeviceGetAttribute", member, handle))

    return Device(
        ordinal,
        call("cuDeviceGetName", NAME_BYTES, handle).split(b"\0")[0].decode(errors="replace"),
        attribute("COMPUTE_CAPABILITY_MAJOR"),
        attribute("COMPUTE_CAPABILITY_MINOR"),
        attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
    )
