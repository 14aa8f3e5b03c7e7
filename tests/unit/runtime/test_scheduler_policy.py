from __future__ import annotations

import pytest

from rusteeze.runtime.config import SchedulerLimits
from rusteeze.runtime.scheduler import AGING, Scheduler, Step
from rusteeze.runtime.sequence import FinishReason, Sequence, State


def scheduler(
    num_blocks: int = 100, block_size: int = 4, tokens: int = 16, seqs: int = 8, length: int = 256
) -> Scheduler:  # fmt: skip
    """Without prefix caching, which test_prefix_cache.py covers."""
    limits = SchedulerLimits(num_blocks, block_size, tokens, seqs, length)
    return Scheduler(limits, cache_layout=None)


def add(target: Scheduler, **lengths: int) -> list[Sequence]:
    sequences = [Sequence(id, list(range(length))) for id, length in lengths.items()]
    for sequence in sequences:
        target.add(sequence)
    return sequences


def run(target: Scheduler, sequences: list[Sequence]) -> Step:
    """One cycle in which every finished prefill and decode yields token 9."""
    step = target.schedule()
    target.commit(step)
    by_id = {sequence.id: sequence for sequence in sequences}
    for chunk in step.chunks:
        if chunk.samples:
            by_id[chunk.sequence_id].append(9)
    target.check_integrity()
    return step


def shape(step: Step) -> dict[str, int]:
    return {chunk.sequence_id: len(chunk.token_ids) for chunk in step.chunks}


def test_prompts_share_the_budget_and_are_chunked_in_order() -> None:
    target = scheduler()
    sequences = add(target, a=10, b=20, c=3)
    assert shape(run(target, sequences)) == {"a": 10, "b": 6}
    assert shape(run(target, sequences)) == {"a": 1, "b": 14, "c": 1}
    assert shape(run(target, sequences)) == {"a": 1, "b": 1, "c": 2}
    assert shape(run(target, sequences)) == {"a": 1, "b": 1, "c": 1}


def test_a_long_prompt_never_delays_a_decode() -> None:
    target = scheduler()
    sequences = add(target, a=3)
    run(target, sequences)
    sequences += add(target, long=200)
    steps = [run(target, sequences) for _ in range(14)]
    assert all(shape(step)["a"] == 1 for step in steps)
    assert [shape(step)["long"] for step in steps] == [15] * 13 + [5]
    assert [step.chunks[-1].samples for step in steps] == [False] * 13 + [True]


def test_logits_are_wanted_only_after_the_last_known_token() -> None:
    target = scheduler(tokens=4)
    sequences = add(target, a=6)
    rows = [[c.num_rows for c in run(target, sequences).chunks] for _ in range(3)]
    assert rows == [[0], [1], [1]]


def test_prompt_rows_are_wanted_once_even_after_preemption() -> None:
    target = scheduler(tokens=4)
    sequence = Sequence("a", list(range(6)), prompt_rows=True)
    target.add(sequence)
    assert [c.num_rows for c in run(target, [sequence]).chunks] == [4]
    target._preempt_last()
    rows = [[c.num_rows for c in run(target, [sequence]).chunks] for _ in range(3)]
    assert rows == [[0], [2], [1]]


def test_at_most_max_num_seqs_run() -> None:
    target = scheduler(seqs=2)
    sequences = add(target, a=2, b=2, c=2)
    assert shape(run(target, sequences)) == {"a": 2, "b": 2}
    target.finish("a", FinishReason.STOP)
    assert shape(run(target, sequences)) == {"b": 1, "c": 2}


def test_the_latest_arrival_is_preempted_and_resumes_with_all_its_tokens() -> None:
    target = scheduler(num_blocks=5)
    sequences = add(target, a=8, b=3)
    old, new = sequences
    run(target, sequences)
    steps = []
    while new.state is State.RUNNING:
        steps.append(run(target, sequences))
    assert steps[-1].preempted == ("b",)
    assert "b" not in shape(steps[-1])
    tokens = list(new.token_ids)
    assert new.num_computed == 0
    target.finish("a", FinishReason.STOP)
    resumed = run(target, sequences)
    assert resumed.chunks[0].token_ids == tuple(tokens)
    assert old.state is State.FINISHED
    assert target.num_preemptions == 1


def test_the_preempted_goes_before_those_who_never_ran() -> None:
    target = scheduler(num_blocks=5)
    sequences = add(target, a=8, b=3)
    run(target, sequences)
    sequences += add(target, c=1)
    while target.num_preemptions == 0:
        run(target, sequences)
    assert [s.id for s in target.sequences()] == ["a", "b", "c"]


def test_a_newcomer_leaves_a_spare_block_to_each_running_sequence() -> None:
    target = scheduler(num_blocks=6)
    sequences = add(target, a=8, b=5, c=4)
    run(target, sequences)
    assert shape(run(target, sequences)) == {"a": 1, "b": 1}
    assert target.pool.num_free == 1
    assert [s.id for s in target.sequences() if s.state is State.WAITING] == ["c"]


def test_a_prompt_that_can_never_fit_is_refused() -> None:
    target = scheduler(num_blocks=3, length=100)
    assert target.limits.max_sequence_len == 12
    add(target, fits=11)
    with pytest.raises(ValueError, match=r"the prompt has 12 tokens; .* may have 12"):
        add(target, big=12)
    assert target.num_waiting == 1


def test_a_lone_sequence_fills_the_pool_without_preemption() -> None:
    target = scheduler(num_blocks=3)
    sequences = add(target, a=2)
    while sequences[0].num_tokens < target.limits.max_sequence_len:
        assert shape(run(target, sequences))
    assert target.num_preemptions == 0


def test_finish_works_in_every_state_and_frees_all_blocks() -> None:
    target = scheduler()
    sequences = add(target, decoding=2, prefilling=40, waiting=3)
    run(target, sequences)
    for sequence in sequences:
        assert target.finish(sequence.id, FinishReason.ABORT)
        assert not target.finish(sequence.id, FinishReason.ABORT)
        target.check_integrity()
    assert target.pool.num_used == 0
    assert target.schedule().chunks == ()


def test_commit_passes_over_what_finished_meanwhile() -> None:
    target = scheduler()
    add(target, a=2, b=2)
    step = target.schedule()
    target.finish("a", FinishReason.ABORT)
    target.commit(step)
    target.check_integrity()
    assert [s.num_computed for s in target.sequences()] == [2]


def arrive(target: Scheduler, **priorities: int) -> list[Sequence]:
    sequences = [Sequence(id, [1, 2, 3], priority=p) for id, p in priorities.items()]
    for sequence in sequences:
        target.add(sequence)
    return sequences


def test_lower_priorities_go_first_and_equal_ones_in_order_of_arrival() -> None:
    target = scheduler(seqs=3)
    arrive(target, late=1, first=0, second=0, urgent=-5)
    assert list(shape(target.schedule())) == ["urgent", "first", "second"]


def test_the_lowest_class_is_preempted_its_latest_arrival_first() -> None:
    target = scheduler(num_blocks=10, block_size=1, tokens=16, seqs=3)
    sequences = [Sequence(i, [1, 2], priority=p) for i, p in {"a": 1, "b": 1, "c": 0}.items()]
    target.add(sequences[0])
    run(target, sequences)
    for sequence in sequences[1:]:
        target.add(sequence)
    run(target, sequences)
    preempted = [id for _ in range(4) for id in run(target, sequences).preempted]
    assert preempted == ["b", "a"]
    assert [s.id for s in target.sequences()] == ["c", "a", "b"]


def test_a_prefill_of_high_priority_does_not_delay_decodes() -> None:
    target = scheduler()
    sequences = arrive(target, low=0)
    run(target, sequences)
    urgent = Sequence("urgent", [1] * 40, priority=-1)
    target.add(urgent)
    sequences.append(urgent)
    assert [shape(run(target, sequences)) for _ in range(2)] == [{"low": 1, "urgent": 15}] * 2


def test_no_class_starves() -> None:
    """A stream of urgent requests, one place: the others are overtaken by AGING per unit, no more."""
    target = scheduler(seqs=1)
    arrive(target, patient=2)
    served = []
    while not served or served[-1] != "patient":
        arrive(target, **{f"urgent-{len(served)}": 0})
        (id,) = shape(target.schedule())
        target.finish(id, FinishReason.STOP)
        served.append(id)
    assert len(served) - 1 == 2 * AGING - 1


def test_an_id_in_use_is_refused() -> None:
    target = scheduler()
    add(target, a=2)
    with pytest.raises(ValueError, match="in use"):
        add(target, a=3)


def test_illegal_transitions_are_errors() -> None:
    sequence = Sequence("a", [1])
    with pytest.raises(RuntimeError, match="cannot append"):
        sequence.append(1)
    sequence.admit()
    with pytest.raises(RuntimeError, match="cannot admit"):
        sequence.admit()
    with pytest.raises(RuntimeError, match="2 > 1 tokens"):
        sequence.advance(2)
    sequence.finish(FinishReason.STOP)
    with pytest.raises(RuntimeError, match="finished already"):
        sequence.finish(FinishReason.STOP)
    with pytest.raises(ValueError, match="no tokens"):
        Sequence("b", [])
