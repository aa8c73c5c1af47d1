"""What a step needs from its machine. Steps not named here get the orchestrator's default (4 CPU, 16 GB)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask


@dataclass(frozen=True)
class Machine:
    """Limits of one step; accelerator names are the ones of Vertex AI's API."""

    cpu: str
    memory: str
    accelerator: str
    retries: int = 2
    backoff: str = "60s"


# FLUX.1 [schnell] in bf16 holds 34 GB of weights, so one 80 GB device trains and draws without offloading.
A100 = Machine(cpu="12", memory="160G", accelerator="NVIDIA_A100_80GB")
MACHINES = {"finetune": A100, "evaluate": A100, "audit": A100}


def on_machine(task: PipelineTask, step: str) -> PipelineTask:
    """The task with the limits and retries of its step's machine; after a lost machine long steps resume."""
    machine = MACHINES[step]
    task.set_cpu_limit(machine.cpu).set_memory_limit(machine.memory)
    task.set_accelerator_type(machine.accelerator).set_accelerator_limit(1)
    return task.set_retry(machine.retries, backoff_duration=machine.backoff)
