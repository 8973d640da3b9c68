"""Make docs/map.png by running README's twenty lines as they are."""

import os
import re
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

if __name__ == "__main__":
    readme = (ROOT / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        exec(compile(code, "README.md", "exec"), {})
        (ROOT / "docs" / "map.png").write_bytes(Path("map.png").read_bytes())
        os.chdir(ROOT)
