"""What an endpoint can run on and what a replica-hour of it costs.

Prices are those of the public Inference Endpoints documentation (support/pricing), in USD per
replica-hour; the JSON shape is that of `GET /v2/provider` (Inference Endpoints OpenAPI v2.0.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

# vendor region accelerator instance_type: size=price ...
_TABLE = """
aws us-east-1 cpu intel-spr: x1=0.033 x2=0.067 x4=0.134 x8=0.268 x16=0.536
aws eu-west-1 cpu intel-spr: x1=0.033 x2=0.067 x4=0.134
aws us-east-1 cpu intel-icl!: x1=0.032 x2=0.064
aws us-east-1 gpu nvidia-t4: x1=0.5 x4=3
aws us-east-1 gpu nvidia-l4: x1=0.8 x4=3.8
aws us-east-1 gpu nvidia-a10g: x1=1 x4=5
aws us-east-1 gpu nvidia-l40s: x1=1.8 x4=8.3 x8=23.5
aws us-east-1 gpu nvidia-a100: x1=2.5 x2=5 x4=10 x8=20
aws us-east-1 gpu nvidia-h100!: x1=4.5 x8=36
aws us-west-2 gpu nvidia-h200: x1=5 x2=10 x4=20 x8=40
aws us-east-1 neuron inf2: x1=0.75 x12=12
azure eastus cpu intel-xeon: x1=0.060 x2=0.120 x4=0.240 x8=0.480
gcp us-east4 cpu intel-spr: x1=0.050 x2=0.100 x4=0.200 x8=0.400
gcp us-east4 gpu nvidia-t4: x1=0.5
gcp us-east4 gpu nvidia-l4: x1=0.7 x4=3.8
gcp us-east4 gpu nvidia-a100: x1=3.6 x8=28.8
gcp us-east4 gpu nvidia-h100: x1=10 x8=80
"""


@dataclass(frozen=True)
class Hardware:
    """One kind of replica in one region."""

    vendor: str
    region: str
    accelerator: str
    instance_type: str
    instance_size: str
    price_text: str
    status: str = "available"

    @property
    def id(self) -> str:
        """The identifier that `compute.id` carries."""
        return f"{self.vendor}-{self.region}-{self.instance_type}-{self.instance_size}"

    @property
    def price_per_hour(self) -> Fraction:
        """USD per replica-hour."""
        return Fraction(self.price_text)

    @property
    def units(self) -> int:
        """Accelerators in one replica, which is what a quota counts."""
        return int(self.instance_size.lstrip("x"))

    def public(self, used: int, maximum: int) -> dict[str, Any]:
        """As the provider list shows it; the price is a JSON number there."""
        gpu = self.accelerator == "gpu"
        return {
            "id": self.id,
            "accelerator": self.accelerator,
            "numAccelerators": self.units,
            "numCpus": None if gpu else 2 * self.units,
            "memoryGb": 16.0 * self.units,
            "gpuMemoryGb": 24 if gpu else None,
            "instanceType": self.instance_type,
            "instanceSize": self.instance_size,
            "architecture": self.instance_type.replace("-", " ").title(),
            "status": self.status,
            "pricePerHour": float(self.price_text),
            "quota": {"maxAccelerators": maximum, "usedAccelerators": used},
        }


def _parse(line: str) -> list[Hardware]:
    head, sizes = line.split(":")
    vendor, region, accelerator, instance = head.split()
    status = "deprecated" if instance.endswith("!") else "available"
    return [
        Hardware(vendor, region, accelerator, instance.rstrip("!"), size, price, status)
        for size, price in (entry.split("=") for entry in sizes.split())
    ]


DEFAULT_HARDWARE = tuple(hw for line in _TABLE.strip().splitlines() for hw in _parse(line))
