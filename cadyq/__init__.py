"""A benchmark for quantized image super-resolution: CADyQ and the methods it is compared with."""

from cadyq.checkpoints.io import load_into, load_model, save_model
from cadyq.checkpoints.io import save_packed as save
from cadyq.checkpoints.names import list_models
from cadyq.checkpoints.official import load_official
from cadyq.data.datasets import register_dataset
from cadyq.evaluation import evaluate
from cadyq.metrics.registry import Metric, register_metric
from cadyq.models.network import SRNetwork, register_backbone
from cadyq.quantization import quantize
from cadyq.quantizers.trace import trace_forward as trace
from cadyq.schemes.base import register_scheme
from cadyq.schemes.factory import create_model, list_backbones, list_schemes
from cadyq.utils.errors import UserError

__version__ = "0.2.0"

__all__ = [
    "Metric",
    "SRNetwork",
    "UserError",
    "create_model",
    "evaluate",
    "list_backbones",
    "list_models",
    "list_schemes",
    "load_into",
    "load_model",
    "load_official",
    "quantize",
    "register_backbone",
    "register_dataset",
    "register_metric",
    "register_scheme",
    "save",
    "save_model",
    "trace",
]
