"""Chat models behind one interface."""

from .backend import ChatBackend, build_backend
from .messages import ChatRequest, ChatResponse, Message
from .openai_server import OpenAIChatBackend

__all__ = ["ChatBackend", "ChatRequest", "ChatResponse", "Message", "OpenAIChatBackend", "build_backend"]
