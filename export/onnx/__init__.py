"""ONNX: the operations of the d-DiT in standard operators, and modules written as graphs of them."""

try:
    from .graph import export_graph
    from .operations import TRANSLATIONS
    from .tensor_specs import read_specs
except ModuleNotFoundError as missing:
    if missing.name not in ("onnx", "onnx_ir", "onnxscript"):
        raise
    needed = "writing ONNX graphs needs onnx and onnxscript; install them with `pip install syncflow[export]`"
    raise ValueError(needed) from missing

__all__ = ["TRANSLATIONS", "export_graph", "read_specs"]
