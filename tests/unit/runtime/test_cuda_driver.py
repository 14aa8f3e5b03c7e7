"""Devices, sessions, errors, uploads: against a libcuda that keeps device memory in host memory."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from smollm2 import python
from stub_gpu import INVALID_VALUE, MIB, OUT_OF_MEMORY, StubGpu, memory, stub_gpu

from rusteeze.errors import UserError
from rusteeze.runtime.cuda.device import choose_architecture, choose_device
from rusteeze.runtime.cuda.driver import CudaError, NoDevice, call
from rusteeze.runtime.cuda.session import Session
from rusteeze.runtime.cuda.upload import Upload


def open_session() -> Session:
    return Session(choose_device("cuda"))


class TestDevice:
    def test_it_is_described(self, gpu: StubGpu) -> None:
        device = choose_device("cuda:auto")
        assert (device.name, device.architecture, device.label) == ("Stub GPU 0", "sm_90", "cuda:0")
        assert device.shared_bytes == 232448

    def test_a_number_names_one(self, gpu: StubGpu) -> None:
        gpu.reset(devices=3)
        assert choose_device("cuda:2").ordinal == 2
        assert choose_device("cuda").ordinal == 0
        with pytest.raises(NoDevice, match=r"no device cuda:3; there are cuda:0, cuda:1, cuda:2"):
            choose_device("cuda:3")

    @pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:00000"])
    def test_other_names_are_refused(self, name: str) -> None:
        stub_gpu()
        with pytest.raises(UserError, match="expected cuda, cuda:auto or cuda:0"):
            choose_device(name)

    def test_a_driver_without_devices(self, gpu: StubGpu) -> None:
        gpu.reset(devices=0)
        with pytest.raises(NoDevice, match=r"finds no GPU; use --device cpu"):
            choose_device("cuda")

    def test_no_driver_at_all(self) -> None:
        stub_gpu()  # for its reasons to skip
        script = (
            "from rusteeze.runtime.cuda.device import choose_device\n"
            "from rusteeze.runtime.cuda.driver import NoDevice\n"
            "try: print(choose_device('cuda'))\n"
            "except NoDevice as error: print(error)"
        )
        said = python("-c", script)
        if said.startswith("Device("):
            pytest.skip("this machine has a GPU")
        assert said.strip() == "no NVIDIA driver was found (libcuda.so.1); install one, or use --device cpu"

    @pytest.mark.parametrize(
        ("own", "have", "chosen"),
        [
            ((9, 0), ("sm_80", "sm_89", "sm_90"), "sm_90"),
            ((8, 9), ("sm_80", "sm_86", "sm_90"), "sm_86"),
            ((8, 0), ("sm_80", "sm_89"), "sm_80"),
            ((10, 3), ("sm_90", "sm_100", "sm_120"), "sm_100"),
        ],
    )
    def test_the_best_code_of_the_same_major_number_runs(
        self, gpu: StubGpu, own: tuple[int, int], have: tuple[str, ...], chosen: str
    ) -> None:
        gpu.reset(architecture=own)
        assert choose_architecture(choose_device("cuda"), have) == chosen

    def test_without_code_for_it_the_message_says_what_there_is(self, gpu: StubGpu) -> None:
        gpu.reset(architecture=(7, 5))
        with pytest.raises(UserError, match=r"Stub GPU 0 is sm_75, which cannot run code for sm_80, sm_90"):
            choose_architecture(choose_device("cuda"), ("sm_80", "sm_90"))


class TestSession:
    def test_all_that_was_made_goes_at_close(self, gpu: StubGpu) -> None:
        session = open_session()
        session.allocate(100, "this")
        session.allocate(28, "that")
        session.pinned(64)
        session.stream()
        session.event()
        session.module(b"k p 0\n", "a kernel")
        assert session.allocated_bytes == gpu.used_bytes == 128
        assert sorted(gpu.live()) == sorted(["memory", "pinned", "streams", "events", "modules", "contexts"])
        session.close()
        session.close()
        assert gpu.live() == {}
        assert session.allocated_bytes == 0

    def test_an_error_has_the_call_its_purpose_and_what_the_driver_says(self, gpu: StubGpu) -> None:
        session = open_session()
        gpu.fail("cuMemAlloc", OUT_OF_MEMORY)
        with pytest.raises(CudaError) as caught:
            session.allocate(3 * MIB, "weights")
        assert str(caught.value) == (
            "CUDA: cuMemAlloc failed for 3.0 MiB of weights: CUDA_ERROR_OUT_OF_MEMORY (out of memory)"
        )
        assert caught.value.status == OUT_OF_MEMORY
        session.close()

    def test_an_error_without_a_name_shows_its_number(self, gpu: StubGpu) -> None:
        session = open_session()
        gpu.fail("cuStreamCreate", 999)
        with pytest.raises(CudaError, match="cuStreamCreate failed: 999"):
            session.stream()
        session.close()

    def test_more_than_the_device_has(self, gpu: StubGpu) -> None:
        session = open_session()
        assert session.free_bytes() == 64 * MIB
        session.allocate(50 * MIB, "a")
        with pytest.raises(CudaError, match=r"20\.0 MiB of pages: CUDA_ERROR_OUT_OF_MEMORY"):
            session.allocate(20 * MIB, "pages")
        session.close()

    def test_each_thread_has_to_enter(self, gpu: StubGpu) -> None:
        session, found = open_session(), []

        def work() -> None:
            try:
                session.free_bytes()
            except CudaError as error:
                found.append(str(error))
            session.enter()
            found.append(str(session.free_bytes()))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert "CUDA_ERROR_INVALID_CONTEXT" in found[0]
        assert found[1] == str(64 * MIB)
        session.close()


class TestUpload:
    @pytest.mark.parametrize("size", [1, 999, 1000, 1001, 12_345])
    def test_every_byte_arrives(self, gpu: StubGpu, size: int) -> None:
        session = open_session()
        source = np.random.default_rng(size).integers(0, 256, size, np.uint8)
        address = session.allocate(size, "weights")
        Upload(session, source, address, piece_bytes=1000).wait()
        assert np.array_equal(memory(address, size), source)
        session.close()

    def test_a_failure_comes_out_at_the_end(self, gpu: StubGpu) -> None:
        session = open_session()
        address = session.allocate(5000, "weights")
        gpu.fail("cuMemcpyHtoDAsync", INVALID_VALUE, after=3)
        upload = Upload(session, np.zeros(5000, np.uint8), address, piece_bytes=1000)
        with pytest.raises(CudaError, match="CUDA_ERROR_INVALID_VALUE"):
            upload.wait()
        session.close()

    def test_nothing_to_upload(self, gpu: StubGpu) -> None:
        session = open_session()
        Upload(session, np.zeros(0, np.uint8), 0).wait()
        assert gpu.calls("cuMemcpyHtoDAsync") == 0
        session.close()

    def test_the_stub_does_nothing_before_somebody_waits(self, gpu: StubGpu) -> None:
        """What the tests here rest on: memory that is used again too early shows."""
        session = open_session()
        stream, address, host = session.stream(), session.allocate(4, "x"), session.pinned(4)
        host[:] = 1
        call("cuMemcpyHtoDAsync", address, host.ctypes.data, 4, stream)
        host[:] = 2
        call("cuStreamSynchronize", stream)
        assert memory(address, 4).tolist() == [2, 2, 2, 2]
        session.close()
