"""From an artifact to something that answers on a GPU, and on the device that was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from smollm2 import python
from stub_gpu import INVALID_VALUE, MIB, OUT_OF_MEMORY, StubGpu, memory
from tiny_tokenizers import byte_level
from toy_cuda import MAX_MODEL_LEN, ToyKernels, expected_tokens, toy_plan, write_artifact

from rusteeze.artifact.contract import SCHEMA, Plan, encode_plan
from rusteeze.artifact.store import publish, read_manifest
from rusteeze.errors import UserError
from rusteeze.runtime import llm
from rusteeze.runtime.backend import gpu_architecture, open_backend
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.cuda.backend import CudaBackend
from rusteeze.runtime.cuda.driver import CudaError, NoDevice
from rusteeze.runtime.memory_plan import DoesNotFit
from rusteeze.runtime.params import SamplingParams
from rusteeze.server.boot import load_model, service_of
from rusteeze.server.config import check

GREEDY = SamplingParams(temperature=0, max_tokens=6)
PROMPTS = [[5, 6, 7], [300, 1], list(range(40))]
PADDING = 9 * MIB


@pytest.fixture
def toy(gpu: StubGpu) -> ToyKernels:
    kernels = ToyKernels()
    gpu.run_kernels(kernels.table())
    return kernels


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "toy.rz", toy_plan(), byte_level().to_str(), padding=PADDING)


class TestLoad:
    def test_it_answers_as_it_should(self, gpu: StubGpu, toy: ToyKernels, artifact: Path) -> None:
        model = llm.load(artifact, device="cuda:0", config=EngineConfig(max_num_seqs=4))
        for prompt, answer in zip(PROMPTS, model.engine.generate(PROMPTS, GREEDY), strict=True):
            assert list(answer.token_ids) == expected_tokens(prompt, 6)
        assert (model.device, model.executor.where) == ("cuda:0", "Stub GPU 0")
        assert gpu.errors == []
        model.close()
        model.close()

    def test_most_of_the_free_memory_becomes_cache(self, gpu: StubGpu, toy: ToyKernels, artifact: Path) -> None:
        model = llm.load(artifact, device="cuda")
        per_block = toy_plan().kv_bytes_per_block()
        assert 0.9 * 64 * MIB - per_block < gpu.used_bytes <= 0.9 * 64 * MIB
        assert model.executor.device_bytes == gpu.used_bytes
        model.close()

    def test_a_budget_for_the_cache(self, gpu: StubGpu, toy: ToyKernels, artifact: Path) -> None:
        model = llm.load(artifact, device="cuda", kv_bytes=MIB)
        assert model.executor.num_blocks == MIB // toy_plan().kv_bytes_per_block()
        model.close()

    def test_weights_arrive_whole_and_aligned(self, gpu: StubGpu, toy: ToyKernels, artifact: Path) -> None:
        backend = CudaBackend(artifact, read_manifest(artifact), "cuda")
        addresses, upload = backend._begin_upload()
        upload.wait()
        assert addresses["padding"] % 64 == addresses["bias"] % 64 == 0
        stored = np.random.default_rng(3).bytes(PADDING)
        assert memory(addresses["padding"], PADDING).tobytes() == stored
        backend.close()

    def test_a_model_too_large_is_refused_with_the_arithmetic(
        self, gpu: StubGpu, artifact: Path
    ) -> None:
        gpu.reset(total_bytes=8 * MIB)
        with pytest.raises(DoesNotFit, match=r"weights 9 MiB \+ scratch .* more than the budget of 7 MiB"):
            llm.load(artifact, device="cuda")
        assert gpu.live() == {}

    @pytest.mark.parametrize(
        ("function", "code"),
        [("cuMemAlloc", OUT_OF_MEMORY), ("cuModuleLoadData", INVALID_VALUE), ("cuMemcpyHtoDAsync", INVALID_VALUE),
         ("cuMemHostRegister", INVALID_VALUE), ("cuStreamCreate", INVALID_VALUE)],
    )  # fmt: skip
    def test_a_failure_leaves_nothing_on_the_device(
        self, gpu: StubGpu, artifact: Path, function: str, code: int
    ) -> None:
        gpu.fail(function, code)
        with pytest.raises(CudaError, match=f"{function} failed"):
            llm.load(artifact, device="cuda")
        assert gpu.live() == {}

    def test_the_cache_is_named_after_its_kernels(self, gpu: StubGpu, artifact: Path, tmp_path: Path) -> None:
        other = write_artifact(tmp_path / "other.rz", toy_plan(workspace_bytes=192), byte_level().to_str())
        names = []
        for folder in (artifact, other):
            backend = open_backend(folder, read_manifest(folder), "cuda", None)
            names.append(backend.written_by())
            backend.close()
        assert len(names[0]) == 4
        assert names[0] != names[1]


class TestWhichDevice:
    def test_another_architecture_takes_the_code_that_fits(
        self, gpu: StubGpu, toy: ToyKernels, artifact: Path
    ) -> None:
        gpu.reset(architecture=(8, 6))
        gpu.run_kernels(toy.table())
        model = llm.load(artifact, device="cuda")
        (answer,) = model.engine.generate([[1, 2]], GREEDY)
        assert list(answer.token_ids) == expected_tokens([1, 2], 6)
        model.close()

    def test_any_gpu_means_one_that_there_is_code_for(
        self, gpu: StubGpu, toy: ToyKernels, artifact: Path
    ) -> None:
        """Not the newest of all: code for 8.0 and 9.0 does not run on 12.0."""
        gpu.reset(devices=3)
        gpu.make(0, (12, 0))
        gpu.make(1, (8, 6))
        gpu.run_kernels(toy.table())
        for device in ("cuda", "cuda:auto", "auto"):
            model = llm.load(artifact, device=device)
            assert model.device == "cuda:2"
            model.close()
        with pytest.raises(UserError, match=r"Stub GPU 0 is sm_120, which cannot run code for sm_80, sm_90"):
            llm.load(artifact, device="cuda:0")

    def test_an_artifact_for_gpus_only(self, gpu: StubGpu, artifact: Path) -> None:
        with pytest.raises(UserError, match=r"toy\.rz was compiled for GPUs only; use --device cuda"):
            llm.load(artifact)
        gpu.reset(devices=0)
        with pytest.raises(NoDevice):
            llm.load(artifact, device="auto")

    def test_auto_takes_the_gpu(self, gpu: StubGpu, toy: ToyKernels, artifact: Path) -> None:
        model = llm.load(artifact, device="auto")
        assert model.device == "cuda:0"
        model.close()

    def test_an_artifact_without_code_for_gpus(self, gpu: StubGpu, cpu_only: Path) -> None:
        with pytest.raises(UserError, match=r"cpu\.rz has no code for GPUs; compile with --target cuda:sm_90"):
            open_backend(cpu_only, read_manifest(cpu_only), "cuda", None)

    def test_the_architecture_to_compile_for(self, gpu: StubGpu) -> None:
        assert [gpu_architecture(device) for device in ("cpu", "cuda", "auto")] == [None, "sm_90", "sm_90"]
        gpu.reset(architecture=(8, 7))
        assert gpu_architecture("cuda") == "sm_86"
        gpu.reset(architecture=(12, 0))
        assert gpu_architecture("auto") is None
        with pytest.raises(UserError, match="sm_120, which cannot run code for sm_80, sm_86, sm_89, sm_90"):
            gpu_architecture("cuda")
        gpu.reset(devices=0)
        assert gpu_architecture("auto") is None
        with pytest.raises(NoDevice):
            gpu_architecture("cuda:0")

    def test_without_cuda_bindings_the_message_says_what_to_install(self, artifact: Path) -> None:
        script = (
            "import sys; sys.modules['cuda'] = None\n"
            "from rusteeze.cli.main import main\n"
            f"sys.argv = ['rusteeze', 'generate', {str(artifact)!r}, '-p', 'x', '--device', DEVICE]\n"
            "try: main()\n"
            "except SystemExit as end: print(end.code, file=sys.stderr)"
        )
        said = python("-c", "import os, sys; os.dup2(1, 2)\n" + script.replace("DEVICE", "'cuda'"))
        assert said == (
            "error: running on a GPU needs the package cuda-bindings; run: pip install 'rusteeze[cuda]'\n2\n"
        )


@pytest.fixture
def cpu_only(tmp_path: Path) -> Path:
    """An artifact that has a plan for CPUs, without kernels."""

    def build(draft: Path) -> None:
        plan = Plan(SCHEMA, (), 1, 16, 1, {}, (), (), (), 0, (0, 0))
        (draft / "plan.json").write_bytes(encode_plan(plan))

    publish(tmp_path / "cpu.rz", build, key="cpu", facts={})
    return tmp_path / "cpu.rz"


class TestServe:
    def test_the_settings_reach_the_device(self, gpu: StubGpu, toy: ToyKernels, artifact: Path) -> None:
        config = check(
            {"model": {"device": "cuda:0"}, "engine": {"gpu_memory_utilization": 0.5, "max_num_seqs": 4}}, "test"
        )
        model, plan = load_model(artifact, config)
        assert 0.5 * 64 * MIB - plan.block_bytes < gpu.used_bytes <= 0.5 * 64 * MIB
        assert plan.total_bytes - plan.cache_bytes == gpu.used_bytes - plan.cache_bytes + _padding_of(artifact)
        assert [purpose for purpose, _, _ in plan.rows() if "process" in purpose] == []
        service = service_of(model, "toy", artifact, config, plan)
        line = next(
            line for line in service.metrics.exposition().decode().splitlines()
            if line.startswith("rusteeze_inference_gpu_memory_used_bytes{")
        )  # fmt: skip
        assert line.startswith('rusteeze_inference_gpu_memory_used_bytes{device="cuda:0"} ')
        assert float(line.split()[-1]) == gpu.used_bytes
        model.close()

    @pytest.mark.parametrize("device", ["cpu", "auto", "cuda", "cuda:auto", "cuda:7"])
    def test_devices_that_can_be_set(self, device: str) -> None:
        assert check({"model": {"device": device}}, "test").model.device == device

    def test_a_device_that_cannot(self) -> None:
        with pytest.raises(UserError, match="device"):
            check({"model": {"device": "tpu"}}, "test")


def _padding_of(artifact: Path) -> int:
    """Bytes of the weight file that are not uploaded: its header, to the last multiple of 256."""
    with (artifact / "cuda/weights.safetensors").open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return (8 + header) // 256 * 256


class TestCommands:
    Run = Callable[..., object]

    def test_generate(self, gpu: StubGpu, toy: ToyKernels, artifact: Path, run: Run) -> None:
        done = run("generate", artifact, "-p", "a,b", "--device", "cuda", "--max-tokens", "4", "--temperature", "0", "--json")
        assert done.exit_code == 0, done.stderr  # type: ignore[attr-defined]
        assert json.loads(done.stdout)["completion_tokens"] == 4  # type: ignore[attr-defined]

    def test_benchmark_and_profile(self, gpu: StubGpu, toy: ToyKernels, artifact: Path, run: Run) -> None:
        done = run("benchmark", artifact, "--device", "cuda", "--batch", 2, "--prefill", 20, "--new-tokens", 3, "--budget", 0.1, "--json")
        assert json.loads(done.stdout)["memory"]["taken on cuda:0"] > PADDING  # type: ignore[attr-defined]
        done = run("profile", artifact, "--device", "cuda", "--context", MAX_MODEL_LEN, "--seconds", 0.05)
        text = done.stdout  # type: ignore[attr-defined]
        assert text.startswith("1 token, Stub GPU 0: 2 µs with time stamps")
        assert "limits measured just now: copying" in text
        assert "no arithmetic, so a limit here is memory's" in text
        done = run("profile", artifact, "--device", "cuda", "--context", MAX_MODEL_LEN, "--seconds", 0.05, "--json")
        facts = json.loads(done.stdout)  # type: ignore[attr-defined]
        assert {k["kernel"]: k["bound"] for k in facts["kernels"]} == {"store": "memory", "logits_long": "memory"}

    def test_a_device_that_is_not_there(self, gpu: StubGpu, artifact: Path, run: Run) -> None:
        done = run("generate", artifact, "-p", "x", "--device", "cuda:5")
        assert done.exit_code == 2  # type: ignore[attr-defined]
        assert done.stderr == "error: there is no device cuda:5; there are cuda:0\n"  # type: ignore[attr-defined]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TestCommands.Run:
    from click.testing import CliRunner

    from rusteeze.cli.main import main

    monkeypatch.setenv("RUSTEEZE_CACHE", str(tmp_path / "cache"))
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])
