"""An artifact opened on an NVIDIA GPU: rusteeze.runtime.backend.Backend for CUDA."""

from __future__ import annotations

from pathlib import Path

from rusteeze.artifact.cuda_contract import PLAN_FILE, WEIGHTS_FILE, decode_cuda_plan
from rusteeze.artifact.store import Manifest, member
from rusteeze.errors import UserError
from rusteeze.runtime.cuda.device import choose_architecture, choose_device
from rusteeze.runtime.cuda.executor import CudaExecutor, fixed_bytes
from rusteeze.runtime.cuda.kernels import load_kernels
from rusteeze.runtime.cuda.session import Session
from rusteeze.runtime.cuda.upload import Upload
from rusteeze.runtime.weights import WeightFile

WEIGHTS_ALIGNED = 256


class CudaBackend:
    """``device``: cuda, cuda:auto or cuda:N. UserError when there is no such device, or the artifact has
    no code for it. ``executor`` takes over what is open; without it, ``close``."""

    process_bytes = 0  # what driver and context take is taken already when free memory is asked for
    most_unasked_bytes: int | None = None  # nobody else uses a GPU's memory meanwhile

    def __init__(self, artifact: Path, manifest: Manifest, device: str) -> None:
        if PLAN_FILE not in manifest.files:
            raise UserError(
                f"{artifact.name} has no code for GPUs; compile with --target cuda:sm_90 (or another "
                "architecture), or use --device cpu"
            )
        self._artifact, self._manifest = artifact, manifest
        self.plan = decode_cuda_plan(member(artifact, manifest, PLAN_FILE).read_bytes())
        self._weights = WeightFile(member(artifact, manifest, WEIGHTS_FILE))
        self._device = choose_device(device, self.plan.architectures)
        self._architecture = choose_architecture(self._device, self.plan.architectures)
        self._binaries = [kernel.binary(self._architecture) for kernel in self.plan.kernels]
        self._session = Session(self._device)

    @property
    def device(self) -> str:
        return self._device.label

    @property
    def weight_bytes(self) -> int:
        return self._weights.total_bytes

    def available_bytes(self) -> int:
        """Free memory of the device."""
        return self._session.free_bytes()

    def fixed_bytes(self, max_batched_tokens: int, max_sequences: int) -> int:
        """What an executor takes beside weights, arenas and pages."""
        return fixed_bytes(self.plan, self._binaries, max_batched_tokens, max_sequences)

    def written_by(self) -> list[str]:
        """Hashes of what decides how the cache looks."""
        files = [PLAN_FILE, *(binary.file for binary in self._binaries)]
        return [self._manifest.files[name].sha256 for name in files if name in self._manifest.files]

    def executor(self, num_blocks: int, max_batched_tokens: int, max_sequences: int) -> CudaExecutor:
        """Load everything: weights arrive while kernels are loaded and scratch is allocated. CudaError,
        with nothing left open."""
        session = self._session
        try:
            addresses, upload = self._begin_upload()
            try:
                kernels = load_kernels(session, self.plan, self._architecture, self._read)
                made = CudaExecutor(
                    session, self.plan, kernels, addresses, num_blocks=num_blocks,
                    max_batched_tokens=max_batched_tokens, max_sequences=max_sequences,
                )  # fmt: skip
            finally:
                upload.wait()  # also on the way out: its threads use what would be closed
        except BaseException:
            session.close()
            raise
        return made

    def close(self) -> None:
        self._session.close()

    def _read(self, name: str) -> bytes:
        return member(self._artifact, self._manifest, name).read_bytes()

    def _begin_upload(self) -> tuple[dict[str, int], Upload]:
        """Addresses of the weights, which lie in device memory as in the file, and their transfer."""
        offsets = {name: self._weights.offset(name) for name in self._weights.names()}
        # rounded down, so that the device's addresses are aligned as places in the file are
        start = min(offsets.values(), default=0) // WEIGHTS_ALIGNED * WEIGHTS_ALIGNED
        source = self._weights.bytes_from(start)
        base = self._session.allocate(len(source), "weights")
        addresses = {name: base + offset - start for name, offset in offsets.items()}
        return addresses, Upload(self._session, source, base)
