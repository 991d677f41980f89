"""CADyQ, content-aware dynamic quantization for super-resolution, and the interface all schemes share."""

from cadyq.checkpoints.io import load_model, save_model
from cadyq.checkpoints.official import load_official
from cadyq.errors import UserError
from cadyq.factory import create_model, list_backbones, list_schemes
from cadyq.models.network import register_backbone, register_scheme
from cadyq.models.network import trace_forward as trace

__version__ = "0.1.0"

__all__ = [
    "UserError",
    "create_model",
    "list_backbones",
    "list_schemes",
    "load_model",
    "load_official",
    "register_backbone",
    "register_scheme",
    "save_model",
    "trace",
]
