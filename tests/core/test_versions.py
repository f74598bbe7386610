from importlib import metadata

import pytest

from toolchain.core.versions import installed_version


@pytest.mark.parametrize("package", ["numpy", "onnx", "llvmlite", "PyYAML", "ml_dtypes", "ml-dtypes", "click"])
def test_it_is_what_the_metadata_says(package):
    assert installed_version(package) == metadata.version(package)


def test_no_such_package():
    assert installed_version("no-such-package") == ""
