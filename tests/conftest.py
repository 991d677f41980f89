"""Fixtures that several parts share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

from cadyq import plugins
from cadyq.checkpoints.published import FOLDER_VARIABLE


def pytest_configure() -> None:
    """Published weights of other authors are looked for beside the benchmark sets, unless a folder is named."""
    folder = Path(os.environ.get("CADYQ_DATA", "")).parent / "weights" / "published"
    if os.environ.get("CADYQ_DATA") and folder.is_dir():
        os.environ.setdefault(FOLDER_VARIABLE, str(folder))


@pytest.fixture(scope="session")
def published_folder() -> Path:
    """The folder of published weights as safetensors; tests that need them are skipped without it."""
    value = os.environ.get(FOLDER_VARIABLE)
    if not value:
        pytest.skip(f"set {FOLDER_VARIABLE} to a folder that holds the files of cadyq/checkpoints/published.toml")
    return Path(value)


# tests that took more than 3 s each when their file ran alone; `make test-fast` leaves them out
SLOW = {
    "baselines/test_derived.py": [
        "test_a_derived_network_comes_back_from_its_file",
        "test_a_wider_stride_keeps_the_selectors_and_lowers_the_cost_of_choosing",
        "test_cabm_takes_the_selectors_majority_by_edge_score",
        "test_gradient_gives_one_choice_for_all_layers_by_gradient",
        "test_static_is_the_same_for_every_patch_and_meets_the_mean",
        "test_the_oracle_pays_less_than_any_uniform_choice",
        "test_the_parents_bits_give_the_parents_output",
    ],
    "baselines/test_schemes.py": [
        "test_a_copy_is_independent",
        "test_changed_weights_are_quantized_again",
        "test_eval_equals_the_plain_path",
        "test_more_bits_come_closer_to_full_precision",
        "test_packed_networks_refuse_training",
        "test_frozen_weights_are_quantized_once",
        "test_weight_grid",
    ],
    "cadyq/test_checkpoints.py": ["test_zoo_names_are_made_of_what_they_hold"],
    "cadyq/test_plugins.py": ["test_derive_knows_a_plugin", "test_verify_knows_a_plugin"],
    "cadyq/test_training_parts.py": [
        "test_attention_looks_at_branches_and_features",
        "test_the_average_is_measured_saved_and_resumed",
    ],
    "cadyq/test_zoo.py": [
        "test_compressed_networks_are_bit_for_bit_the_file_they_were_made_of",
        "test_networks_load_and_beat_interpolation",
    ],
    "test_fuzz_commands.py": ["test_whatever_is_typed"],
    "test_light_core.py": [
        "test_commands_name_their_extra",
        "test_the_library_works_with_the_core_alone",
        "test_what_needs_more_names_its_extra",
    ],
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests."""
    here = Path(__file__).parent
    for item in items:
        names = SLOW.get(item.path.relative_to(here).as_posix(), [])
        if getattr(item, "originalname", item.name) in names:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds ``benchmark/`` and ``BSDS500/``; tests that need it are skipped without it."""
    value = os.environ.get("CADYQ_DATA")
    if not value:
        pytest.skip("set CADYQ_DATA to the folder that holds benchmark/ and BSDS500/")
    return Path(value)


@pytest.fixture
def write_set(tmp_path: Path) -> Callable[[int, int, int], Path]:
    """Writes `count` square crops of a photograph, each `shift` rows below the last, as HR of the set "Mine"."""

    def write(count: int, side: int, shift: int) -> Path:
        folder = tmp_path / "benchmark" / "Mine" / "HR"
        folder.mkdir(parents=True)
        for number in range(count):
            crop = np.ascontiguousarray(data.astronaut()[shift * number :][:side, :side])
            Image.fromarray(crop).save(folder / f"{number}.png")
        return folder

    return write


@pytest.fixture(scope="session")
def published_metrics() -> pd.DataFrame:
    """PSNR and SSIM that the published metric codes gave for Pillow's bicubic on Set5 x4."""
    return pd.read_csv(Path(__file__).parent / "fixtures" / "metrics.csv")


@pytest.fixture
def registries() -> Iterator[None]:
    """What the test registers, and the plugins it loads, are gone after it."""
    kept = [dict(registry._known) for registry in plugins.REGISTRIES]
    loaded = dict(plugins._loaded)
    yield
    for registry, classes in zip(plugins.REGISTRIES, kept, strict=True):
        registry._known = classes  # type: ignore[assignment]
    plugins._loaded = loaded
