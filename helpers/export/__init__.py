"""Exports: adapter, merged 16-bit model, GGUF and Hub, each proven before it counts as saved.

In this order: `save_adapter`, `measure_reference`, `verify_adapter`,
`merge_16bit`, `verify_merged`, `write_card`, `export_gguf`, `publish`, `zip_run`.
"""

from helpers.export.folders import zip_run
from helpers.export.gain import HeldOut
from helpers.export.gguf import export_gguf
from helpers.export.hub import publish
from helpers.export.loadable import save_adapter, saving_adapter
from helpers.export.merge import merge_16bit
from helpers.export.model_card import hub_name, write_card
from helpers.export.reference import measure_reference
from helpers.export.serve import serving_lines, sixteen_bit_name
from helpers.export.verify import verify_adapter, verify_merged

__all__ = [
    "HeldOut",
    "export_gguf",
    "hub_name",
    "measure_reference",
    "merge_16bit",
    "publish",
    "save_adapter",
    "saving_adapter",
    "serving_lines",
    "sixteen_bit_name",
    "verify_adapter",
    "verify_merged",
    "write_card",
    "zip_run",
]
