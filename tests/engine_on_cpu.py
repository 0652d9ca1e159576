"""milora's command line on CPUs that accelerate takes for accelerators: it shares a model out among those alone."""

import os
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from milora.cli import main

join = PartialState.__init__


def join_as_accelerators(self: PartialState, cpu: bool = False, **options: Any) -> None:
    join(self, cpu=True, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_XPU


if not os.environ.keys().isdisjoint({"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"}):
    PartialState.__init__ = join_as_accelerators
if "ACCELERATE_USE_DEEPSPEED" in os.environ:
    import deepspeed.ops

    # Else it compiles shared-memory collectives, for a minute; gloo's do.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
main()
