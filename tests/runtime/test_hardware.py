"""GPU, driver, precision and the manifest's description of the machine."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest

from helpers.core.errors import StackError
from helpers.runtime import hardware
from helpers.runtime.hardware import (
    Driver,
    Gpu,
    choose_precision,
    describe_hardware,
    find_gpu,
    read_driver,
    require_gpu,
    where,
)

T4 = Gpu("Tesla T4", (7, 5), 15_828_320_256, 15_700_000_000)

HEADER = """
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.54.15              Driver Version: 550.54.15      CUDA Version: 12.4     |
"""


@pytest.fixture
def nvidia_smi(monkeypatch):
    """Replaces nvidia-smi by a function of its arguments that returns what it prints, or None for a failure."""

    def install(answer):
        def run(command, **_):
            text = answer(command[1:])
            return subprocess.CompletedProcess(command, 0 if text is not None else 9, text or "", "")

        monkeypatch.setattr(hardware.subprocess, "run", run)
        read_driver.cache_clear()

    yield install
    read_driver.cache_clear()


def fake_torch(**cuda):
    """A torch that has these functions under torch.cuda."""
    return types.SimpleNamespace(cuda=types.SimpleNamespace(**cuda))


class TestService:
    """Whose machine this is."""

    def test_a_service_is_told_by_its_variables(self, monkeypatch):
        """Kaggle is recognized before Colab, whose marks its image keeps."""
        monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
        monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
        assert where() == "local"
        monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
        assert where() == "colab"
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
        assert where() == "kaggle"


class TestPrecision:
    """The number format by compute capability."""

    @pytest.mark.parametrize(
        ("capability", "precision"),
        [
            (None, "fp32"),
            ((6, 1), "fp16"),
            ((7, 0), "fp16"),
            ((7, 5), "fp16"),
            ((8, 0), "bf16"),
            ((8, 9), "bf16"),
            ((9, 0), "bf16"),
            ((12, 0), "bf16"),
        ],
    )
    def test_capability_decides(self, capability, precision):
        """A CPU gets fp32, cards before Ampere fp16, and Ampere and later bf16."""
        assert choose_precision(capability) == precision


class TestGpu:
    """The card that training uses, and doing without."""

    def test_the_process_own_card_is_described(self, monkeypatch):
        """Name, capability, memory in bytes and count are what torch says of the device that was chosen."""
        torch = fake_torch(
            is_available=lambda: True,
            current_device=lambda: 1,
            mem_get_info=lambda device: [(1, 2), (15_700_000_000, 15_828_320_256)][device],
            get_device_name=lambda device: ["another", "Tesla T4"][device],
            get_device_capability=lambda device: [(8, 0), (7, 5)][device],
            device_count=lambda: 2,
        )
        monkeypatch.setitem(sys.modules, "torch", torch)
        assert find_gpu() == Gpu("Tesla T4", (7, 5), 15_828_320_256, 15_700_000_000, 2)

    def test_no_card_is_none(self, monkeypatch):
        """Without a GPU that torch can use there is none."""
        monkeypatch.setitem(sys.modules, "torch", fake_torch(is_available=lambda: False))
        assert find_gpu() is None

    def test_no_torch_is_an_error(self, monkeypatch):
        """Without torch the question has no answer."""
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(StackError, match="torch"):
            find_gpu()

    @pytest.mark.parametrize("preset", ["colab-t4", "large-gpu", "auto"])
    def test_a_gpu_preset_without_a_gpu_says_what_to_click(self, preset):
        """The error names the menu of Colab and of Kaggle, and the preset that needs no GPU."""
        with pytest.raises(StackError) as caught:
            require_gpu(preset, None)
        assert caught.value.field == "preset"
        for hint in ("Runtime, Change runtime type, T4 GPU", "On Kaggle: Settings, Accelerator", "preset 'smoke'"):
            assert hint in str(caught.value)

    @pytest.mark.parametrize(("preset", "gpu"), [("smoke", None), ("smoke", T4), ("colab-t4", T4)])
    def test_nothing_is_said_when_all_is_well(self, preset, gpu):
        """Smoke runs anywhere, and the other presets where there is a GPU."""
        assert require_gpu(preset, gpu) is None


class TestDriver:
    """What nvidia-smi tells."""

    def test_driver_cuda_and_names_are_read(self, nvidia_smi):
        """Two cards, one driver, and the newest CUDA that it runs."""
        nvidia_smi(lambda arguments: "550.54.15, Tesla T4\n550.54.15, Tesla T4\n" if arguments else HEADER)
        assert read_driver() == Driver("550.54.15", "12.4", ("Tesla T4", "Tesla T4"))

    @pytest.mark.parametrize("answer", [None, "", "No devices were found\n"])
    def test_without_a_card_there_is_no_driver(self, nvidia_smi, answer):
        """An nvidia-smi that fails or lists nothing means that there is no GPU."""
        nvidia_smi(lambda arguments: answer)
        assert read_driver() is None

    def test_without_the_tool_there_is_no_driver(self, monkeypatch):
        """A machine without nvidia-smi has no GPU."""
        read_driver.cache_clear()
        monkeypatch.setenv("PATH", "")
        assert read_driver() is None
        read_driver.cache_clear()


class TestInstalledFiles:
    """What is read from installed files, without importing them."""

    @pytest.fixture
    def install(self, tmp_path, monkeypatch):
        """Puts a distribution with one file before the installed ones."""

        def put(name, file, text):
            info = tmp_path / f"{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            (tmp_path / file).parent.mkdir()
            (tmp_path / file).write_text(text)
            monkeypatch.syspath_prepend(tmp_path)

        return put

    @pytest.mark.parametrize(
        ("line", "cuda"),
        [
            ("cuda: Optional[str] = '12.8'", "12.8"),
            ("cuda: Optional[str] = None", None),
            ("cuda = '13.0'", "13.0"),
            ("", None),
        ],
    )
    def test_torch_s_cuda_is_read_from_its_version_file(self, install, line, cuda):
        """The CUDA version is known without importing torch."""
        text = f"__all__ = ['__version__', 'cuda']\n__version__ = '2.13.0'\n{line}\nhip: Optional[str] = None\n"
        install("torch", "torch/version.py", text)
        assert hardware.torch_cuda() == cuda

    def test_the_installed_torch_agrees(self):
        """What the file says is what torch says of itself."""
        torch = pytest.importorskip("torch")
        assert hardware.torch_cuda() == torch.version.cuda

    @pytest.mark.parametrize(
        ("text", "built"),
        [('{"version": {"torch": "2.10.0+cu128"}}', "2.10.0+cu128"), ("", None), ("[]", None), ("{}", None)],
    )
    def test_the_torch_of_xformers_is_read_from_its_build_file(self, install, text, built):
        """The build file of xformers names the torch that its extensions need; no file means no extensions."""
        install("xformers", "xformers/cpp_lib.json", text)
        assert hardware.xformers_torch() == built


class TestDescription:
    """The machine in a manifest."""

    def test_it_is_plain_json(self):
        """The description can be written into a manifest, and has these keys on every machine."""
        described = describe_hardware()
        assert json.loads(json.dumps(described)) == described
        assert sorted(described) == [
            "cores", "cpu", "driver", "driver_cuda", "gpus", "platform", "ram_bytes", "torch", "torch_cuda",
        ]  # fmt: skip

    def test_gpu_and_driver_are_in_it(self):
        """With a card the driver and the names stand in it."""
        described = describe_hardware(Driver("550.54.15", "12.4", ("Tesla T4",)))
        assert (described["gpus"], described["driver"], described["driver_cuda"]) == (["Tesla T4"], "550.54.15", "12.4")
