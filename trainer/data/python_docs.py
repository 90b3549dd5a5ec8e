"""The embedded corpus: English prose that lies on every machine with this trainer, the documentation inside Python.

`pydoc_data.topics` (the language reference) and the docstrings of the standard library and of installed packages, found
by parsing their source files without importing them. The same for every run in one environment.
"""

import ast
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import re
import sysconfig

from trainer.errors import InputError

STANDARD_LIBRARY = "stdlib"
DEFAULT_PACKAGES = (STANDARD_LIBRARY, "keras", "numpy", "tensorflow")
_SKIPPED_FOLDERS = {
    "__pycache__",
    "_api",  # generated: the docstrings of the public names are those of the implementation
    "_tf_keras",
    "api",
    "dist-packages",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
}
_PART_BYTES = 2 << 20  # of source text: enough parts for several cores, few enough that starting one costs nothing
_SHORTEST_TEXT = 40  # characters; shorter docstrings ("See base class.") teach nothing
_CODE = re.compile(r"^\s*(>>>|\.\.\. |```|\.\. )")


def corpus_version(packages=DEFAULT_PACKAGES):
    """Returns what decides the content of the corpus: package names with their versions.

    Raises:
        InputError: if a package is not installed.
    """
    versions = {}
    for package in packages:
        if package == STANDARD_LIBRARY:
            versions[package] = platform.python_version()
            continue
        _package_folder(package)
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "unknown"  # e.g. `tensorflow` that comes from the distribution `tensorflow-cpu`
            for name in importlib.metadata.packages_distributions().get(package, [])[:1]:
                versions[package] = importlib.metadata.version(name)
    return versions


def divide(packages=DEFAULT_PACKAGES):
    """Divides the source files of packages into parts to be extracted in parallel.

    Returns:
        List of parts, each a list of paths of source files, in a fixed order.
    """
    parts, size = [[]], 0
    for package in packages:
        for path in _source_files(_package_folder(package)):
            bytes_here = os.path.getsize(path)
            if parts[-1] and size + bytes_here > _PART_BYTES:
                parts.append([])
                size = 0
            parts[-1].append(path)
            size += bytes_here
    return [part for part in parts if part]


def extract(part):
    """Extracts the documents of a part.

    Args:
        part: list of paths of source files.

    Returns:
        JSON lines, as text: a document a line, its paragraphs separated by line ends in the field `text`.
    """
    documents = []
    for path in part:
        with open(path, "rb") as file:
            source = file.read()
        if os.path.basename(path) == "topics.py" and os.path.basename(os.path.dirname(path)) == "pydoc_data":
            documents += _topics(source)
        elif b'"""' in source or b"'''" in source:
            documents += _docstrings(source)
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)


def _package_folder(package):
    """The folder of a package, or of the standard library."""
    if package == STANDARD_LIBRARY:
        return sysconfig.get_paths()["stdlib"]
    specification = importlib.util.find_spec(package) if package.isidentifier() else None
    if specification is None or not specification.submodule_search_locations:
        raise InputError(
            f"the package {package!r} of the python_docs corpus is not installed. Leave it out with "
            f"--python_packages, e.g. --python_packages {STANDARD_LIBRARY},numpy."
        )
    return next(iter(specification.submodule_search_locations))


def _source_files(root):
    """The sorted Python files below a folder."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _SKIPPED_FOLDERS)
        yield from (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py"))


def _parse(source):
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):  # templates and tests of syntax errors lie among the sources
        return None


def _definitions(node):
    """The classes and functions in a body, with those inside them, in the order of the text."""
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from _definitions(child)
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from _definitions(child)


def _docstrings(source):
    """The documents of a source file: the module's docstring, and each function's or class's with its methods'."""
    tree = _parse(source)
    if tree is None:
        return []
    documents = [_paragraphs(ast.get_docstring(tree, clean=False))]
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = [node, *_definitions(node)]
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            inside = list(_definitions(node))
        else:
            continue
        texts = (ast.get_docstring(each, clean=False) for each in inside)
        documents.append([paragraph for text in texts for paragraph in _paragraphs(text)])
    return ["\n".join(paragraphs) for paragraphs in documents if sum(map(len, paragraphs)) >= _SHORTEST_TEXT]


def _topics(source):
    """The documents of `pydoc_data/topics.py`: the values of a dictionary of texts."""
    tree = _parse(source)
    literals = [] if tree is None else [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    texts = [ast.literal_eval(value) for value in literals[0].values] if literals else []
    return ["\n".join(paragraphs) for text in texts if (paragraphs := _paragraphs(text))]


def _paragraphs(docstring):
    """The paragraphs of a docstring as single lines; examples of code and directives are left out."""
    if not docstring:
        return []
    blocks = re.split(r"\n[ \t]*\n", inspect.cleandoc(docstring))
    return [joined for block in blocks if not _CODE.match(block) and (joined := " ".join(block.split()))]
