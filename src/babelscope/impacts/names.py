"""Names of the kernels, for settings that are read without torch."""

from __future__ import annotations

from typing import Literal

KernelName = Literal["auto", "triton", "compiled", "eager", "reference"]
