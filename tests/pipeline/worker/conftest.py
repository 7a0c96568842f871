"""What the tests of the large engine share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fakes.checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official folder at a tiny size, not to be changed."""
    folder = tmp_path_factory.mktemp("official")
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def modes() -> Iterator[None]:
    """What a model sets for its process is set back."""
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)
    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)
