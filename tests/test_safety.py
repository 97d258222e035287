"""A scan of the syntax trees, aliases included: no code executes its input or reads secrets."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = [
    *sorted((ROOT / "dpt").rglob("*.py")),
    *sorted(ROOT.glob("*.py")),
    *sorted((ROOT / "tools").glob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]

UNSAFE_MODULES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "pandas")
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "tempfile.mktemp",
    "shutil.unpack_archive",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.hub.load",
    "torch.package.PackageImporter",
    "ssl._create_unverified_context",
    "pty.spawn",
    "ast.literal_eval",
    "code.interact",
    "builtins.eval",
    "builtins.exec",
}
FORBIDDEN_METHODS = {"extractall", "load_module", "exec_module"}
NEEDED = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}
FORBIDDEN_WORDS = {
    "shell": True,
    "trust_remote_code": True,
    "verify": False,
    "allow_pickle": True,
    "weights_only": False,
}
IMPORT_FROM_A_TABLE = {"dpt/__init__.py", "dpt/cli/main.py", "dpt/cli/train/main.py"}
"""They import modules named in a table in the code."""
KNOWN_VARIABLES = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "ACCELERATE_MIXED_PRECISION",
    "DPT_CACHE_DIR",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "RANK",
    "TORCH_BUILD",
    "TORCH_INDEX",
    "WORLD_SIZE",
    "XDG_CACHE_HOME",
}


def unsafe(source: str, name: str = "x.py") -> Iterator[str]:
    tree = ast.parse(source)
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {
                item.asname or item.name.split(".")[0]: item.name if item.asname else item.name.split(".")[0]
                for item in node.names
            }
            yield from (f"imports {item.name}" for item in node.names if item.name.split(".")[0] in UNSAFE_MODULES)
        if isinstance(node, ast.ImportFrom) and node.module:
            aliases |= {item.asname or item.name: f"{node.module}.{item.name}" for item in node.names}
            if node.module.split(".")[0] in UNSAFE_MODULES:
                yield f"imports from {node.module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _unsafe_call(node, aliases, name)
        if isinstance(node, ast.Attribute | ast.Name) and (called := _dotted(node, aliases)) in NEEDED:
            parents = [item for item in ast.walk(tree) if isinstance(item, ast.Call) and item.func is node]
            if not parents:
                yield f"{called} under another name"


def _unsafe_call(node: ast.Call, aliases: dict[str, str], name: str) -> Iterator[str]:
    called = _dotted(node.func, aliases)
    words = {
        keyword.arg: keyword.value.value
        for keyword in node.keywords
        if keyword.arg and isinstance(keyword.value, ast.Constant)
    }
    if called in FORBIDDEN_CALLS:
        yield called
    if isinstance(node.func, ast.Attribute) and node.func.attr in FORBIDDEN_METHODS:
        yield f".{node.func.attr}()"
    if called in NEEDED and words.get(NEEDED[called][0]) is not NEEDED[called][1]:
        yield f"{called} without {NEEDED[called][0]}={NEEDED[called][1]}"
    yield from (f"{word}={value}" for word, value in FORBIDDEN_WORDS.items() if word in words and words[word] is value)
    constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
    if called == "importlib.import_module" and not constant and name not in IMPORT_FROM_A_TABLE:
        yield "imports a module by a variable name"


def _dotted(node: ast.AST, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, aliases)}.{node.attr}"
    return "?"


def test_no_code_executes_its_input() -> None:
    unsafe_calls = {
        name: list(unsafe(file.read_text(), name)) for file in SOURCES if (name := str(file.relative_to(ROOT)))
    }
    assert not {name: faults for name, faults in unsafe_calls.items() if faults}


UNSAFE = [
    "import pickle as p",
    "from pickle import loads",
    "import joblib",
    "from marshal import loads",
    "import dill",
    "eval('1')",
    "exec('1')",
    "__import__('os')",
    "compile('1', '', 'exec')",
    "import ast\nast.literal_eval('1')",
    "import torch\ntorch.load('a')",
    "import torch as t\nt.load('a')",
    "from torch import load\nload('a')",
    "from torch import load as l\nl('a', weights_only=False)",
    "import torch\nread = torch.load\nread('a')",
    "import torch\ntorch.load('a', weights_only=maybe)",
    "import numpy as np\nnp.load('a')",
    "import numpy as np\nnp.load('a', allow_pickle=True)",
    "import yaml\nyaml.load('a')",
    "import subprocess\nsubprocess.run('ls', shell=True)",
    "import os\nos.system('ls')",
    "from os import popen\npopen('ls')",
    "import tempfile\ntempfile.mktemp()",
    "archive.extractall()",
    "import shutil\nshutil.unpack_archive('a')",
    "AutoModel.from_pretrained('a', trust_remote_code=True)",
    "get('a', verify=False)",
    "import importlib\nimportlib.import_module(name)",
    "import torch\ntorch.hub.load('a', 'b')",
]
SAFE = [
    "import torch\ntorch.load('a', weights_only=True)",
    "import numpy as np\nnp.load('a', allow_pickle=False)",
    "model.eval()",
    "re.compile('a')",
    "self.load('a')",
    "import json\njson.load(file)",
]


def test_scan_detects_unsafe_calls_only() -> None:
    assert [source for source in UNSAFE if not list(unsafe(source))] == []
    assert [source for source in SAFE if list(unsafe(source))] == []


def test_json_is_parsed_only_in_untrusted() -> None:
    for file in SOURCES:
        if file.is_relative_to(ROOT / "dpt") and file.name != "untrusted.py":
            assert "json.load" not in file.read_text(), file


def test_only_known_environment_variables_are_read() -> None:
    """The hub's token is not among them: huggingface_hub reads it itself."""
    for file in SOURCES:
        tree = ast.parse(file.read_text())
        mentions = [
            node for node in ast.walk(tree) if _dotted(node, {}) in ("os.environ", "os.getenv", "os.environ.update")
        ]
        whole = sum(
            -1 if _dotted(node, {}) == "os.environ.update" else 1 for node in mentions
        )  # an update reads nothing
        names = [name for node in ast.walk(tree) for name in _variables(node)]
        assert whole == len(names), f"{file} reads the environment in a way that cannot be followed"
        assert set(names) <= KNOWN_VARIABLES, file


def _variables(node: ast.AST) -> list[str]:
    argument: ast.expr | None = None
    if isinstance(node, ast.Subscript) and _dotted(node.value, {}) == "os.environ":
        argument = node.slice
    if isinstance(node, ast.Call) and _dotted(node.func, {}) in ("os.environ.get", "os.getenv") and node.args:
        argument = node.args[0]
    return [str(argument.value)] if isinstance(argument, ast.Constant) else []
