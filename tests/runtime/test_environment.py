"""What the setup cell does, and where tokens are looked for."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from runtimes import COLAB, HOST, own_machine, runtime

from helpers.core.errors import StackError
from helpers.runtime import setup as environment
from helpers.runtime.hardware import SPLIT, Driver, Host
from helpers.runtime.setup import read_secret, setup_notebook

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plain_machine():
    """A machine of one's own."""
    with own_machine():
        yield


class TestSetup:
    """What a notebook's setup cell does."""

    @pytest.fixture
    def service(self, monkeypatch):
        """Colab, with a list of packages that pip changes and a record of what pip was told."""
        state = types.SimpleNamespace(installed=runtime("colab_py312"), commands=[], returncode=0, modules={})
        state.set_up = lambda host=COLAB: setup_notebook(
            host=host, versions=lambda: dict(state.installed), modules=state.modules
        )

        def pip(command, **_):
            state.commands.append(command)
            if not state.returncode:
                state.installed |= dict(part.split("==") for part in command if "==" in part)
            return subprocess.CompletedProcess(command, state.returncode, "", "WARNING: x\nERROR: no network")

        os.environ["COLAB_RELEASE_TAG"] = "release"
        monkeypatch.setattr(environment.subprocess, "run", pip)
        return state

    def test_a_machine_of_one_s_own_is_left_alone(self, monkeypatch, capsys):
        """Outside Colab and Kaggle nothing is installed, and the last line says ready."""
        monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: pytest.fail("nothing may be started"))
        assert setup_notebook(host=HOST).ok
        assert capsys.readouterr().out.startswith("ready: Python 3.12.4, unsloth 2026.")

    def test_colab_is_made_ready_without_dependency_resolution(self, service, capsys):
        """On Colab pip installs the plan with --no-deps into the running interpreter, and then all is ready."""
        assert service.set_up().ok
        (command,) = service.commands
        assert command[:5] == [sys.executable, "-m", "pip", "install", "--no-deps"]
        assert "torchao==0.18.0" in command
        assert capsys.readouterr().out.splitlines()[-1].startswith("ready: ")

    def test_a_second_setup_installs_nothing(self, service):
        """Running the cell again starts no pip."""
        service.set_up()
        service.set_up()
        assert len(service.commands) == 1

    def test_a_failed_installation_shows_pip_s_last_line(self, service):
        """When pip fails, its last line and the next step are told."""
        service.returncode = 1
        with pytest.raises(StackError, match=r"no network'\. Run the cell again"):
            service.set_up()

    def test_kaggle_without_internet_is_told_where_to_turn_it_on(self, service):
        """On Kaggle a failed installation mostly means that the Internet is off."""
        service.returncode = 1
        os.environ["KAGGLE_KERNEL_RUN_TYPE"] = "Interactive"
        with pytest.raises(StackError, match="Turn the Internet on"):
            service.set_up()

    def test_replacing_what_the_kernel_imported_asks_for_a_restart(self, service):
        """A package that was imported and then replaced is named, with what to click."""
        service.modules["pyarrow"] = types.SimpleNamespace(__version__=importlib.metadata.version("pyarrow"))
        with pytest.raises(StackError, match=r"'pyarrow'\. Click Runtime, Restart session"):
            service.set_up()

    def test_problems_that_remain_stop_the_notebook(self, service, capsys):
        """A conflict is printed whole and raised, so that "Run all" goes no further."""
        service.installed["torch"] = "2.16.0"
        with pytest.raises(StackError, match="not ready: 3 problems"):
            service.set_up()
        assert "unsloth 2026.10.9 needs torch<2.15.0,>=2.4.0, 2.16.0 is installed" in capsys.readouterr().out

    def test_an_unsupported_python_installs_nothing(self, service):
        """On Python 3.14 the cell stops before pip is started."""
        with pytest.raises(StackError, match=r"3\.14\.0"):
            service.set_up(Host("3.14.0", service="colab"))
        assert service.commands == []

    @pytest.mark.parametrize("name", ["torch", "pyarrow"])
    def test_a_stale_module_is_told_before_anything_is_installed(self, monkeypatch, name):
        """When the kernel holds another torch than the one on disk, a restart is asked for, and pip is not started."""
        os.environ["COLAB_RELEASE_TAG"] = "release"
        modules = {name: types.SimpleNamespace(__version__="1.0.0")}
        monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: pytest.fail("nothing may be started"))
        with pytest.raises(StackError, match=rf"{name}: expected the running kernel .* Restart session"):
            setup_notebook(host=COLAB, modules=modules)

    def test_the_torch_on_disk_is_not_stale(self):
        """Versions that differ in their build alone are the same."""
        disk = importlib.metadata.version("torch").partition("+")[0]
        assert environment._refuse_stale({"torch": types.SimpleNamespace(__version__=disk)}) is None

    def test_the_pyarrow_on_disk_is_not_stale(self):
        """Pyarrow calls itself by the version that its metadata has."""
        assert importlib.import_module("pyarrow").__version__ == importlib.metadata.version("pyarrow")

    @pytest.mark.parametrize(
        ("cards", "share", "visible"),
        [(1, "", None), (2, "", "0"), (2, "1", None)],
    )
    def test_the_first_of_several_gpus_is_pinned(self, cards, share, visible):
        """With two GPUs a process sees the first one, unless the model is split over both."""
        os.environ[SPLIT] = share
        environment._prepare_process(Host("3.12.4", driver=Driver("550", "12.4", ("Tesla T4",) * cards)))
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible

    def test_what_the_user_set_stays(self):
        """A visible-devices list of the user's own is left alone, and so is a tokenizers setting."""
        os.environ |= {"CUDA_VISIBLE_DEVICES": "1", "TOKENIZERS_PARALLELISM": "true"}
        environment._prepare_process(Host("3.12.4", driver=Driver("550", "12.4", ("Tesla T4",) * 2)))
        assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["TOKENIZERS_PARALLELISM"]) == ("1", "true")

    def test_statistics_are_off(self):
        """Unsloth's download of a statistics file is turned off before it is imported."""
        os.environ.pop("UNSLOTH_DISABLE_STATISTICS", None)
        environment._prepare_process(HOST)
        assert os.environ["UNSLOTH_DISABLE_STATISTICS"] == "1"

    def test_an_imported_distribution_is_found_by_its_modules(self):
        """Here pytest has been imported, and ruff has not."""
        found = [environment._imported(name, sys.modules) for name in ("pytest", "ruff")]
        assert found == [True, False]


class TestSecrets:
    """Where a token is looked for."""

    @pytest.fixture
    def colab(self, monkeypatch):
        """A Colab page whose secret A_TOKEN is "from-colab"."""
        error = type("Error", (Exception,), {})
        userdata = types.ModuleType("google.colab.userdata")
        userdata.SecretNotFoundError = type("SecretNotFoundError", (Exception,), {})
        userdata.NotebookAccessError = type("NotebookAccessError", (Exception,), {})
        userdata.asked = []

        def get(name):
            userdata.asked.append(name)
            if name != "A_TOKEN":
                raise userdata.SecretNotFoundError
            return "from-colab"

        userdata.get = get
        package = types.ModuleType("google.colab")
        package.userdata, package.errors = userdata, types.SimpleNamespace(Error=error)
        monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
        monkeypatch.setitem(sys.modules, "google.colab", package)
        shell = type("Shell", (), {"__module__": "google.colab._shell"})()
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
        return userdata

    def test_the_environment_comes_first(self, colab, capsys):
        """A variable wins over Colab's secret, which is not asked for, and nothing is printed."""
        os.environ["A_TOKEN"] = " from-env "
        assert read_secret("A_TOKEN") == "from-env"
        assert (colab.asked, capsys.readouterr().out) == ([], "")

    def test_colab_s_secret_is_read_on_its_page(self, colab):
        """On a Colab page the secret of that name is read, and one that is not there is None."""
        os.environ.pop("A_TOKEN", None)
        assert read_secret("A_TOKEN") == "from-colab"
        assert read_secret("ANOTHER_TOKEN") is None

    @pytest.mark.parametrize("off_page", ["shell", "enterprise"])
    def test_colab_is_not_asked_off_its_page(self, colab, monkeypatch, off_page):
        """In another shell on the same machine, and on Colab Enterprise, userdata would hang, so it is not asked."""
        if off_page == "shell":
            monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
        else:
            os.environ["VERTEX_PRODUCT"] = "COLAB_ENTERPRISE"
        assert read_secret("A_TOKEN") is None
        assert colab.asked == []

    @pytest.fixture
    def kaggle(self, monkeypatch):
        """A Kaggle notebook whose secret A_TOKEN is "from-kaggle"."""

        class Client:
            def get_secret(self, name):
                if name != "A_TOKEN":
                    raise type("BackendError", (Exception,), {})
                return "from-kaggle"

        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
        monkeypatch.setitem(sys.modules, "kaggle_secrets", types.SimpleNamespace(UserSecretsClient=Client))

    @pytest.mark.usefixtures("kaggle")
    def test_kaggle_s_secret_is_read(self):
        """The secret attached to the notebook; one that is not there is None."""
        os.environ.pop("A_TOKEN", None)
        assert read_secret("A_TOKEN") == "from-kaggle"
        assert read_secret("ANOTHER_TOKEN") is None

    def test_a_stored_login_is_used(self, monkeypatch, tmp_path):
        """What `hf auth login` wrote down is Hugging Face's token, and no other."""
        (tmp_path / "token").write_text("hf_stored")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "A_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        assert read_secret("HF_TOKEN") == "hf_stored"
        assert read_secret("A_TOKEN") is None


def test_importing_the_module_loads_nothing_heavy():
    """The module needs the standard library only, and packaging not before it is used."""
    code = (
        "import sys; import helpers.runtime.setup, tools.badges; "
        "print([m for m in ('torch', 'packaging', 'numpy', 'unsloth', 'IPython') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
