"""Why a model cannot be compiled. Every message is one line and says what to do."""

from __future__ import annotations

from rusteeze.errors import UserError


class FrontendError(UserError):
    """Base of everything that the frontend refuses."""


class UnknownArchitecture(FrontendError):
    """The configuration belongs to no causal language model of the installed transformers."""


class UnusableConfig(FrontendError):
    """No model can be built from the configuration: a value of it makes no sense."""


class UnsupportedAttention(FrontendError):
    """Attention that cannot be captured: no interface, or layers that are not attention at all."""


class AttentionCountMismatch(FrontendError):
    """The trace holds another number of attention calls than the model has layers."""


class UnknownAttentionArgument(FrontendError):
    """The model passes something to its attention function whose meaning is not known here."""


class MissingLayerIndex(FrontendError):
    """An attention module does not know which layer it is."""


class UnsupportedMask(FrontendError):
    """A mask that is neither causal nor a causal sliding window."""


class ChunkedAttention(UnsupportedMask):
    """Attention within fixed chunks of positions (Llama 4)."""


class WindowMismatch(UnsupportedMask):
    """The mask and the ``sliding_window`` argument of a layer contradict each other."""


class UnsupportedRope(FrontendError):
    """Rotary positions that are no function of the position alone, or that cannot be tabulated."""


class ContextTooLong(FrontendError):
    """``max_model_len`` exceeds the learned positions of the model."""


class LostBuffer(FrontendError):
    """A buffer that was built without storage and whose value could not be computed again."""


class ExportFailed(FrontendError):
    """``torch.export`` could not trace the model."""


class UnsupportedOp(FrontendError):
    """An ATen op without an importer, or a use of one that the IR cannot say."""


class UnsupportedLayout(UnsupportedOp):
    """An op that mixes the token axis with another one."""


class UnsupportedWrite(UnsupportedOp):
    """An in-place write that cannot be expressed without aliasing."""
