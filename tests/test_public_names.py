import ast
import subprocess
import sys
from pathlib import Path

import pytest

import visus


def test_importing_visus_loads_nothing_heavy():
    code = "import sys, visus; print(sorted({'torch', 'numpy', 'pydantic', 'scipy'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


@pytest.mark.parametrize("name", visus.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    assert getattr(visus, name).__doc__


def test_the_stub_for_editors_lists_the_same_names():
    stub = ast.parse(Path(visus.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    listed = {alias.name: node.module for node in imports for alias in node.names}
    assert listed == visus._HOME


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trainn'"):
        visus.trainn  # noqa: B018
