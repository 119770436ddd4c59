"""What `import fedrot` loads, and that its names are there whatever was imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fedrot
from tests.processes import Running


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_alone_and_the_command_line_load_neither_torch_nor_flower():
    code = "import sys, fedrot, fedrot.cli; print([m for m in ('torch', 'flwr', 'transformers') if m in sys.modules])"
    assert run(code) == "[]"


def test_methods_is_the_function_whatever_was_imported_first():
    code = "import sys\n"
    forget = "for name in [name for name in sys.modules if name.split('.')[0] == 'fedrot']: del sys.modules[name]\n"
    for first in ("fedrot", "fedrot.methods.base", "fedrot.methods", "fedrot.core"):
        code += f"{forget}import {first}, fedrot; print('fedrot' in fedrot.methods())\n"
    assert run(code).split() == ["True"] * 4


def partitioners() -> None:
    from fedrot.partition_options import find_kind

    iid = find_kind("iid")
    assert not {"flwr_datasets", "seaborn", "matplotlib.pyplot"} & sys.modules.keys()
    import flwr_datasets

    assert flwr_datasets.partitioner.IidPartitioner is iid
    assert "seaborn" in sys.modules


def test_partitioners_come_without_plots_and_the_whole_package_has_the_same_ones():
    done = Running(partitioners).wait()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", fedrot.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(fedrot, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fedrot.nothing  # pyright: ignore[reportAttributeAccessIssue]
