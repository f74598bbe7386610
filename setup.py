"""What pyproject.toml cannot say: in a checkout the recipes lie beside the package, in a wheel inside it (for `tc init`)."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SUFFIXES = (".yaml", ".py", ".png")         # of what makes a recipe; the rest is what building it left behind
ROOT = Path(__file__).parent


class BuildWithRecipes(build_py):
    """Copies modules as ever, then recipes/NAME/* to toolchain/recipes/NAME/*; an editable install needs neither."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)       # an earlier build may have left modules since removed
        super().run()
        if not self.editable_mode:
            for file in ROOT.glob("recipes/*/*"):
                if file.suffix in SUFFIXES:
                    target = Path(self.build_lib, "toolchain", file.relative_to(ROOT))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)


setup(cmdclass={"build_py": BuildWithRecipes})
