"""What is said of a path that is no store: it is known for what it is, and the next command can be copied."""

import pytest

from hepti_mpi.paths import no_model, no_store


def folder(path):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize("root", ["", "hub", "hub/models--org--name", "hub/models--org--name/snapshots"])
def test_the_cache_of_the_hub(tmp_path, root):
    snapshot = folder(tmp_path / "hub/models--org--name/snapshots/abc")
    for said in (no_store(tmp_path / root), no_model(tmp_path / root)):
        assert "Hugging Face cache" in said and said.endswith(f"python -m hepti_mpi slice {snapshot} weights/name.h5")


def test_a_name_with_a_blank_is_quoted(tmp_path):
    said = no_store(folder(tmp_path / "my model"))
    assert said.endswith(f"slice '{tmp_path}/my model' 'weights/my model.h5'")


def test_a_folder_without_a_store(tmp_path):
    assert no_store(tmp_path).endswith("slice MODEL_FOLDER weights/model.h5")
