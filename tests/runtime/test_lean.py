import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reflectrt
from exports import Exports
from PIL import Image

HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum", "safetensors", "huggingface_hub")
ROOT = Path(reflectrt.__file__).parent

BLOCK = f"""
import sys
HEAVY = {HEAVY!r}
class Blocked:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(name + " is blocked", name=name)
sys.meta_path.insert(0, Blocked())
"""


def python(code: str, *arguments: object) -> str:
    """Run code in a fresh process that cannot import what only export may use; its output."""
    command = [sys.executable, "-c", BLOCK + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)).save(path)
    return path


def test_the_block_blocks() -> None:
    assert python("try:\n import torch\nexcept ImportError as e: print(e)") == "torch is blocked\n"


@pytest.mark.parametrize(
    "module", ["reflectrt", "reflectrt.runtime", "reflectrt.runtime.engines.onnxruntime", "reflectrt.cli"]
)
def test_modules_import_without_torch(module: str) -> None:
    python(f"import {module}")


def test_a_bundle_answers_without_torch(exports: Exports, picture: Path) -> None:
    code = """
import json, reflectrt
session = reflectrt.load(sys.argv[1], threads=1).open(sys.argv[2])
chosen = session.ask("Which?", options=["a", "b", "c"])
written = session.ask("What?", reflect="always", max_new_tokens=3)
print(json.dumps([chosen.option, chosen.forwards, len(written.tokens), written.reflection.shape[0]]))
print(sorted(set(sys.modules) & set(HEAVY)))
"""
    answer, modules = python(code, exports.bundle(), picture).splitlines()
    option, forwards, tokens, reflected = json.loads(answer)
    assert option in ("A", "B", "C")
    assert (forwards, reflected) == (3, 1)
    assert tokens >= 4
    assert modules == "[]"


def test_the_command_line_answers_without_torch(exports: Exports, picture: Path) -> None:
    code = "from reflectrt.cli import main\nsys.exit(main(sys.argv[1:]))"
    out = python(code, "ask", exports.bundle(), picture, "-q", "Which?", "-o", "a", "-o", "b", "--json")
    assert json.loads(out)["answers"][0]["option"] in ("A", "B")


def test_export_without_torch_says_what_to_install(tmp_path: Path) -> None:
    code = """
from contextlib import redirect_stderr
from reflectrt.cli import main
with redirect_stderr(sys.stdout):
    print(main(["export", sys.argv[1], sys.argv[1] + "/bundle"]))
"""
    message, status = python(code, tmp_path).splitlines()
    assert message.startswith("error: export needs ")
    assert "pip install 'reflectrt[export]'" in message
    assert status == "2"


def test_importing_does_not_load_the_engine_library() -> None:
    assert python("import reflectrt\nprint('onnxruntime' in sys.modules)") == "False\n"


def imports(file: Path) -> set[str]:
    """Every module that a file's code names in an import, wherever it stands; relative ones with their dots."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


@pytest.mark.parametrize("file", sorted((ROOT / "runtime").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_runtime_knows_only_itself_and_its_few_libraries(file: Path) -> None:
    allowed = {"numpy", "av", "PIL", "tokenizers", "onnxruntime", *sys.stdlib_module_names}
    depth = len(file.relative_to(ROOT / "runtime").parts)  # as many dots stay inside runtime/
    for name in imports(file):
        dots = len(name) - len(name.lstrip("."))
        assert dots <= depth if dots else name.partition(".")[0] in allowed, name
