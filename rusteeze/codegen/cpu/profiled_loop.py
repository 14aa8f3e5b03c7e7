"""The step loop's other form, which writes down when each call begins and ends, in LLVM IR.

    rz_run_profiled(shared, tid, stamps)
        as rz_run; ``stamps[tid][call]`` receives three times in nanoseconds of CLOCK_MONOTONIC: before
        the kernel, behind it, and behind the barrier if there is one

At the end all threads meet once more: nobody writes to the stamps after the step. Reading the clock takes some 20 ns, three times a call. The ordinary loop looks once a step whether it
is wanted at all.
"""

from __future__ import annotations

STAMPS_PER_CALL = 3

PROFILED_LOOP = """
declare i32 @clock_gettime(i32, ptr)

define linkonce_odr void @rz_stamp(ptr %at) nounwind {
  %time = alloca [2 x i64], align 8
  %r = call i32 @clock_gettime(i32 1, ptr %time)
  %seconds = load i64, ptr %time, align 8
  %rest_at = getelementptr i64, ptr %time, i64 1
  %rest = load i64, ptr %rest_at, align 8
  %scaled = mul i64 %seconds, 1000000000
  %ns = add i64 %scaled, %rest
  store i64 %ns, ptr %at, align 8
  ret void
}

define linkonce_odr void @rz_run_profiled(ptr %shared, i32 %tid, ptr %stamps) nounwind noinline {
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
  %skipped = mul i64 %thread, %count
  br label %head
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
  %n = add i64 %skipped, %i
  %before = getelementptr [3 x i64], ptr %stamps, i64 %n
  %behind = getelementptr i64, ptr %before, i64 1
  %met = getelementptr i64, ptr %before, i64 2
  %two = and i64 %flags, 2
  %whole = icmp ne i64 %two, 0
  %t = select i1 %whole, i32 0, i32 %tid
  %of = select i1 %whole, i32 1, i32 %nth
  call void @rz_stamp(ptr %before)
  call void %kernel(ptr %args, ptr %step, i32 %t, i32 %of)
  call void @rz_stamp(ptr %behind)
  %bit = and i64 %flags, 1
  %wait = icmp ne i64 %bit, 0
  br i1 %wait, label %meet, label %tail
meet:
  call void @rz_barrier(ptr %shared, i32 %nth)
  br label %tail
tail:
  call void @rz_stamp(ptr %met)
  %next = add i64 %i, 1
  br label %head
done:
  call void @rz_barrier(ptr %shared, i32 %nth)
  ret void
}
"""
