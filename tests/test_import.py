"""What `import fedrot` loads, and that its names are there whatever was imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fedrot


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


def test_partitioners_come_without_plots_and_the_whole_package_has_the_same_ones():
    code = """import sys
from fedrot.partition_options import find_kind
iid = find_kind("iid")
print([name for name in ("seaborn", "scipy", "matplotlib") if name in sys.modules])
import flwr_datasets
print(flwr_datasets.partitioner.IidPartitioner is iid, flwr_datasets.FederatedDataset.__name__)
"""
    assert run(code).splitlines() == ["[]", "True FederatedDataset"]


@pytest.mark.parametrize("name", fedrot.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(fedrot, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fedrot.nothing  # pyright: ignore[reportAttributeAccessIssue]
