"""Chat models behind one interface."""

from .backend import ChatBackend, build_backend
from .cache import CachedBackend
from .messages import ChatRequest, ChatResponse, Message
from .openai_server import OpenAIChatBackend
from .replay import ReplayBackend
from .transformers_model import TransformersChatBackend

__all__ = [
    "CachedBackend",
    "ChatBackend",
    "ChatRequest",
    "ChatResponse",
    "Message",
    "OpenAIChatBackend",
    "ReplayBackend",
    "TransformersChatBackend",
    "build_backend",
]
