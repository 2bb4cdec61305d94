"""Unsloth's functions for layers with an adapter, on the CPU.

unsloth.kernels cannot be imported without triton, so they are taken out of the files and run by themselves. What they
need of triton, the gate and the unpacking of weights, is written in torch.
"""

from __future__ import annotations

import ast
import threading
import types
from contextlib import contextmanager

import torch
from sources import module_tree


def load_kernels():
    """Return Unsloth's three functions, the product that they ask for, and its checkpointing, as one module."""
    made = types.ModuleType("kernels")
    known = {
        "torch": torch, "torch_matmul": torch.matmul, "addmm_": torch.Tensor.addmm_,
        "torch_amp_custom_fwd": lambda function: function, "torch_amp_custom_bwd": lambda function: function,
        "_is_compiling": torch.compiler.is_compiling, "_rms_layernorm": types.SimpleNamespace(_SAVE_OUTPUT=False),
        "Float8Tensor": types.new_class("Float8Tensor"), "Int4QuantState": types.new_class("Int4QuantState"),
        "threading": threading, "contextmanager": contextmanager, "_is_packed_state": lambda state: False,
        "fast_dequantize": lambda weight, state, **_: weight,
    }  # fmt: skip
    made.__dict__.update(known)
    wanted = {
        "unsloth_zoo/gradient_checkpointing.py": [
            "_GC_RECOMPUTE_TLS", "in_gradient_checkpoint_recompute", "_gradient_checkpoint_recompute_marker",
            "_detach_checkpoint_args", "Unsloth_Gradient_Checkpointer",
        ],
        "unsloth/kernels/utils.py": ["matmul_lora"],
        "unsloth/kernels/fast_lora.py": [
            "_dropout_forward", "_dropout_replay", "_matmul_lora_ext", "_add_lora_dX", "_lora_bias_grad",
            "_may_overwrite_input", "LoRA_MLP", "LoRA_QKV", "LoRA_W",
        ],
    }  # fmt: skip
    for file, names in wanted.items():
        found = [node for node in module_tree(file).body if name_of(node) in names]
        assert [name_of(node) for node in found] == names
        exec(compile(ast.Module(found, []), file, "exec"), made.__dict__)
    return made


def name_of(node):
    """Return what a statement of a module defines, if it has a name."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return getattr(node, "name", None)


def gate(e, g):
    """Return silu(e) * g, as `swiglu_fg_kernel`."""
    return torch.nn.functional.silu(e) * g


def gate_backward(d, e, g):
    """Return what `swiglu_DWf_DW_dfg_kernel` leaves in its three arguments."""
    sigmoid = torch.sigmoid(e)
    f = sigmoid * e
    return f * g, d * f, d * g * sigmoid * (1 + e * (1 - sigmoid))


def parameters_of(projection):
    """Return a projection's weight, its quantization state, and its adapter."""
    lora = (projection.lora_A["default"].weight, projection.lora_B["default"].weight, projection.scaling["default"])
    return (projection.base_layer.weight, None, *lora)
