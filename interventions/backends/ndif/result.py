"""Results of an NDIF server: tensors and plain values of the size that was asked for, nothing that runs.

A server may be anybody's. A result is a zip archive of torch's, compressed with zstd; it is held against its limit
before anything is unpacked, and its pickle against what a result is made of before it is read.
"""

import ast
import io
import math
import pickletools
import zipfile
from collections.abc import Sequence
from typing import Any

import torch

from data.errors import UserError

SPARE_BYTES = 32 << 20  # beside the tensors asked for, and for what says no size
MOST_WINDOW = 1 << 27  # of zstd
PICKLE_BYTES = 16 << 20
KNOWN = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"} | {
    f"torch {kind}Storage"
    for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
}
OTHER_WAYS = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")  # to name what is called


class UnfitError(Exception):
    """A result that is none, in a few words."""


def decompressed(content: bytes, most: int) -> bytes:
    """What zstd made smaller, if it is no more than so many bytes.

    Raises:
        UnfitError: It is more, or no zstd.
    """
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW).stream_reader(content) as stream:
            found = stream.read(most + 1)
    except zstandard.ZstdError:
        raise UnfitError("it is not compressed as a result is") from None
    if len(found) > most:
        raise UnfitError(f"it unpacks to more than the {most >> 20} MB that were asked for")
    return found


def load_result(content: bytes, most: int | None = None) -> dict[str, Any]:
    """Read a result: tensors and plain values by name.

    Args:
        content: torch's archive.
        most: Bytes that it may take.

    Raises:
        UnfitError: It is no archive of torch's, takes more, or holds something else.
    """
    _check_archive(content, math.inf if most is None else most)
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # torch advises to trust the file; we don't
        raise UnfitError("it can't be read as tensors and plain values") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UnfitError("it holds no named values")
    _check_values(list(found.values()))
    return found


def _check_archive(content: bytes, most: float) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise UnfitError("it is compressed inside")
            if sum(entry.file_size for entry in entries) > most:
                raise UnfitError(f"it takes more than the {int(most) >> 20} MB that were asked for")
            pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > PICKLE_BYTES:
                raise UnfitError("it is no result of torch's")
            words = archive.read(pickles[0])
    except (zipfile.BadZipFile, NotImplementedError, OSError, RuntimeError):
        raise UnfitError("it is no archive of torch's") from None
    try:
        for operation, argument, _ in pickletools.genops(words):
            if operation.name in OTHER_WAYS or (operation.name == "GLOBAL" and argument not in KNOWN):
                raise UnfitError("it holds something other than tensors and plain values")
    except ValueError:
        raise UnfitError("it is no result of torch's") from None


def _check_values(values: list[Any]) -> None:
    while values:
        value = values.pop()
        if isinstance(value, torch.Tensor):
            whole = value.layout == torch.strided and value.device.type == "cpu"
            if not whole or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise UnfitError("a tensor in it claims more values than it holds")
        elif isinstance(value, dict):
            values += value.values()
        elif isinstance(value, (list, tuple)):
            values += value
        elif value is not None and not isinstance(value, (str, int, float)):
            raise UnfitError("it holds something other than tensors and plain values")


def saved_names(node: ast.AST) -> set[str]:
    """Names that a traced block saves: those it assigns an `nnsight.save(…)`."""
    return {
        target.id
        for one in ast.walk(node)
        if isinstance(one, ast.Assign) and isinstance(one.value, ast.Call) and ast.unparse(one.value.func) == "nnsight.save"
        for target in one.targets
        if isinstance(target, ast.Name)
    }  # fmt: skip


def expect(value: Any, shape: Sequence[int], what: str, whole: bool = False) -> torch.Tensor:
    """A tensor that came back, if it has the shape and kind it should.

    Args:
        value: What came back.
        shape: Its shape.
        what: Its name for people.
        whole: Whether it holds whole numbers.

    Raises:
        UserError: It is something else.
    """
    if not isinstance(value, torch.Tensor) or value.shape != torch.Size(shape) or value.is_floating_point() == whole:
        seen = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise UserError(f"{what} came back as {seen}, not {tuple(shape)}; is this an NDIF server? try another --host")
    return value
