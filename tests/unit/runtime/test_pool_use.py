"""How much of the cache's memory holds live tokens while more requests wait than fit."""

from __future__ import annotations

import random
import statistics

from rusteeze.runtime.config import SchedulerLimits
from rusteeze.runtime.scheduler import Scheduler
from rusteeze.runtime.sequence import FinishReason, Sequence

BLOCK_SIZE = 16


class Load:
    """Requests with 32 to 1024 prompt tokens, all different, and 16 to 512 new ones; 8 always wait."""

    def __init__(self, num_blocks: int) -> None:
        self.draw = random.Random(1)
        self.scheduler = Scheduler(SchedulerLimits(num_blocks, BLOCK_SIZE, 512, 256, 4096))
        self.targets: dict[str, int] = {}
        self.live: dict[str, Sequence] = {}
        self.num_finished = 0

    def step(self) -> None:
        while self.scheduler.num_waiting < 8:
            self.arrive()
        step = self.scheduler.schedule()
        self.scheduler.commit(step)
        for chunk in step.chunks:
            if chunk.samples:
                self.sample(self.live[chunk.sequence_id])

    def arrive(self) -> None:
        prompt = [self.draw.randrange(9999) for _ in range(self.draw.randint(32, 1024))]
        sequence = Sequence(str(len(self.targets)), prompt)
        self.targets[sequence.id] = len(prompt) + self.draw.randint(16, 512)
        self.live[sequence.id] = sequence
        self.scheduler.add(sequence)

    def sample(self, sequence: Sequence) -> None:
        sequence.append(7)
        if sequence.num_tokens == self.targets[sequence.id]:
            self.scheduler.finish(sequence.id, FinishReason.LENGTH)
            del self.live[sequence.id]
            self.num_finished += 1


def test_at_saturation_the_pool_is_full_of_live_tokens() -> None:
    load = Load(num_blocks=2048)
    of_pool, of_used = [], []
    while load.num_finished < 300:
        load.step()
        tokens = sum(sequence.num_computed for sequence in load.scheduler.sequences())
        of_pool.append(tokens / (2048 * BLOCK_SIZE))
        of_used.append(tokens / (load.scheduler.pool.num_used * BLOCK_SIZE))
    warm = len(of_pool) // 10
    assert statistics.mean(of_used[warm:]) >= 0.98
    assert statistics.mean(of_pool[warm:]) >= 0.95
