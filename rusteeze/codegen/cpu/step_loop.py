"""The native heart of a step: run a table of kernel calls on all threads, in LLVM IR.

    rz_run(program, count, step, bar, tid, nth)
        one thread's way through a program: ``program[i]`` points at a record
        {kernel, flags, args...}; flag 1 asks for a barrier behind the call, flag 2 lets every thread run
        the call as if it were alone
    rz_worker(shared, tid)
        a helper thread: waits for a step, runs its share, waits again; returns when told to stop
    rz_step_once(shared)
        the caller's thread (tid 0): wakes the helpers, runs its share; back when all are done

``shared`` is an array of 64-bit words, each group on a cache line of its own: [0] generation,
[1] sleeping helpers, [8] barrier count, [16] barrier generation, [17] sleepers at the barrier,
[24] program, [25] count, [26] step, [27] threads, [28] stop, [29] spins before a helper sleeps between
steps, [30] spins before a thread sleeps at a barrier, [31] their upper bound, [32] where time stamps go
(profiled_loop.py), or 0, [33] bytes between the programs of two threads, 0 when all have the same.

Waiting is spinning first, because others are usually only microseconds away, then sleeping in a futex
(Linux): when other processes hold the cores, a spinning thread keeps its own partner from running. So
patience at barriers adapts: a wait in vain halves it, down to FEWEST spins; every meeting adds an eighth
and PATIENCE. (Cutting it to FEWEST at once was a trap: one late partner, as after a pause, when a processor
has to be woken first, and from then on every wait ended in a futex, whose waking took longer still.)
"""

from __future__ import annotations

from rusteeze.codegen.cpu.profiled_loop import PROFILED_LOOP

SYSCALL_FUTEX = {"x86_64": 202, "aarch64": 98}
PAUSE = {"x86_64": "pause", "aarch64": "yield"}
FEWEST, PATIENCE = 300, 16

_TEXT = """
declare i64 @syscall(i64, ...)

define linkonce_odr void @rz_barrier(ptr %shared, i32 %nth) nounwind {
entry:
  %alone = icmp eq i32 %nth, 1
  br i1 %alone, label %done, label %arrive
arrive:
  %count = getelementptr i64, ptr %shared, i64 8
  %generation = getelementptr i64, ptr %shared, i64 16
  %sleeping = getelementptr i64, ptr %shared, i64 17
  %spins_at = getelementptr i64, ptr %shared, i64 30
  %limit = load atomic i32, ptr %spins_at monotonic, align 4
  %mine = load atomic i32, ptr %generation acquire, align 4
  %before = atomicrmw add ptr %count, i32 1 acq_rel, align 4
  %arrived = add i32 %before, 1
  %last = icmp eq i32 %arrived, %nth
  br i1 %last, label %release, label %spin
release:
  store atomic i32 0, ptr %count monotonic, align 4
  %next = add i32 %mine, 1
  store atomic i32 %next, ptr %generation seq_cst, align 4
  %asleep = load atomic i32, ptr %sleeping seq_cst, align 4
  %any = icmp ne i32 %asleep, 0
  br i1 %any, label %wake, label %done
wake:
  %w = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %generation, i64 129, i32 2147483647)
  br label %done
spin:
  %spins = phi i32 [ 0, %arrive ], [ %more, %again ]
  call void asm sideeffect "PAUSE", "~{memory}"()
  %now = load atomic i32, ptr %generation acquire, align 4
  %same = icmp eq i32 %now, %mine
  %more = add i32 %spins, 1
  br i1 %same, label %again, label %met
met:
  %most_at = getelementptr i64, ptr %shared, i64 31
  %most = load atomic i32, ptr %most_at monotonic, align 4
  %eighth = lshr i32 %limit, 3
  %longer = add i32 %limit, %eighth
  %patient = add i32 %longer, PATIENCE
  %low = icmp ult i32 %patient, %most
  %bounded = select i1 %low, i32 %patient, i32 %most
  store atomic i32 %bounded, ptr %spins_at monotonic, align 4
  br label %done
again:
  %long = icmp ugt i32 %more, %limit
  br i1 %long, label %crowded, label %spin
crowded:
  %half = lshr i32 %limit, 1
  %few = icmp ult i32 %half, FEWEST
  %fewer = select i1 %few, i32 FEWEST, i32 %half
  store atomic i32 %fewer, ptr %spins_at monotonic, align 4
  br label %sleep
sleep:
  %s1 = atomicrmw add ptr %sleeping, i32 1 seq_cst, align 4
  %r = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %generation, i64 128, i32 %mine, ptr null)
  %s2 = atomicrmw sub ptr %sleeping, i32 1 seq_cst, align 4
  %then = load atomic i32, ptr %generation acquire, align 4
  %still = icmp eq i32 %then, %mine
  br i1 %still, label %sleep, label %done
done:
  ret void
}

define linkonce_odr void @rz_run(ptr %shared, i32 %tid) nounwind {
entry:
  %programs_at = getelementptr i64, ptr %shared, i64 24
  %programs = load ptr, ptr %programs_at, align 8
  %apart_at = getelementptr i64, ptr %shared, i64 33
  %apart = load i64, ptr %apart_at, align 8
  %thread = sext i32 %tid to i64
  %further = mul i64 %thread, %apart
  %program = getelementptr i8, ptr %programs, i64 %further
  %count_at = getelementptr i64, ptr %shared, i64 25
  %count = load i64, ptr %count_at, align 8
  %step_at = getelementptr i64, ptr %shared, i64 26
  %step = load ptr, ptr %step_at, align 8
  %nth_at = getelementptr i64, ptr %shared, i64 27
  %nth = load i32, ptr %nth_at, align 8
  %stamps_at = getelementptr i64, ptr %shared, i64 32
  %stamps = load ptr, ptr %stamps_at, align 8
  %plain = icmp eq ptr %stamps, null
  br i1 %plain, label %head, label %profiled
profiled:
  call void @rz_run_profiled(ptr %shared, i32 %tid, ptr %stamps)
  ret void
head:
  %i = phi i64 [ 0, %entry ], [ %next, %tail ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %body, label %done
body:
  %slot = getelementptr ptr, ptr %program, i64 %i
  %record = load ptr, ptr %slot, align 8
  %kernel = load ptr, ptr %record, align 8
  %flags_at = getelementptr i64, ptr %record, i64 1
  %flags = load i64, ptr %flags_at, align 8
  %args = getelementptr i64, ptr %record, i64 2
  %two = and i64 %flags, 2
  %whole = icmp ne i64 %two, 0
  %t = select i1 %whole, i32 0, i32 %tid
  %n = select i1 %whole, i32 1, i32 %nth
  call void %kernel(ptr %args, ptr %step, i32 %t, i32 %n)
  %bit = and i64 %flags, 1
  %wait = icmp ne i64 %bit, 0
  br i1 %wait, label %meet, label %tail
meet:
  call void @rz_barrier(ptr %shared, i32 %nth)
  br label %tail
tail:
  %next = add i64 %i, 1
  br label %head
done:
  ret void
}

define linkonce_odr i32 @rz_worker_loop(ptr %shared, i32 %tid) nounwind {
entry:
  %stop_at = getelementptr i64, ptr %shared, i64 28
  %spins_at = getelementptr i64, ptr %shared, i64 29
  %sleeping = getelementptr i64, ptr %shared, i64 1
  br label %wait
wait:
  %seen = phi i32 [ 0, %entry ], [ %latest, %work ]
  %limit = load atomic i32, ptr %spins_at monotonic, align 4
  br label %spin
spin:
  %spins = phi i32 [ 0, %wait ], [ %more, %pause ]
  %new = load atomic i32, ptr %shared acquire, align 4
  %changed = icmp ne i32 %new, %seen
  br i1 %changed, label %woken, label %pause
pause:
  call void asm sideeffect "PAUSE", "~{memory}"()
  %more = add i32 %spins, 1
  %long = icmp ugt i32 %more, %limit
  br i1 %long, label %sleep, label %spin
sleep:
  %s1 = atomicrmw add ptr %sleeping, i32 1 seq_cst, align 4
  %r = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %shared, i64 128, i32 %seen, ptr null)
  %s2 = atomicrmw sub ptr %sleeping, i32 1 seq_cst, align 4
  %now = load atomic i32, ptr %shared acquire, align 4
  %real = icmp ne i32 %now, %seen
  br i1 %real, label %woken, label %sleep
woken:
  %latest = phi i32 [ %new, %spin ], [ %now, %sleep ]
  %stop = load atomic i32, ptr %stop_at acquire, align 4
  %quit = icmp ne i32 %stop, 0
  br i1 %quit, label %done, label %work
work:
  call void @rz_run(ptr %shared, i32 %tid)
  br label %wait
done:
  ret i32 0
}

define linkonce_odr i32 @rz_step_main(ptr %shared) nounwind {
entry:
  %g = atomicrmw add ptr %shared, i32 1 seq_cst, align 4
  %sleeping_at = getelementptr i64, ptr %shared, i64 1
  %sleeping = load atomic i32, ptr %sleeping_at seq_cst, align 4
  %any = icmp ne i32 %sleeping, 0
  br i1 %any, label %wake, label %run
wake:
  %r = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %shared, i64 129, i32 2147483647)
  br label %run
run:
  call void @rz_run(ptr %shared, i32 0)
  ret i32 0
}
"""


def support_text(machine: str) -> str:
    """The step loop for a machine ("x86_64", "aarch64"), to be imported next to the kernels."""
    words = {"PAUSE": PAUSE[machine], "FUTEX": SYSCALL_FUTEX[machine]}
    words |= {"FEWEST": FEWEST, "PATIENCE": PATIENCE}
    text = _TEXT + PROFILED_LOOP
    for word, value in words.items():
        text = text.replace(word, str(value))
    return text
