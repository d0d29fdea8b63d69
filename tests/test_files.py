"""Where files go when the user has no home folder: nowhere, and never into a folder named `~`."""

import huggingface_hub
import pytest

from cartridges_jax import files
from cartridges_jax.errors import InputError
from cartridges_jax.models.fingerprint import weights_fingerprint
from cartridges_jax.models.sources import hub
from cartridges_jax.models.sources.folder import FolderSource
from tests.conftest import TEST_MODEL


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A user whom the system does not know, in an empty working directory."""

    def unknown(_):
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.iterdir())  # nothing was made here


def test_without_a_home_there_is_no_cache(nobody):
    assert files.cache_folder("xla") is None
    source = FolderSource(TEST_MODEL)
    assert weights_fingerprint(source) == weights_fingerprint(source)


@pytest.mark.parametrize("path", ["~", "~/data", "~nobody-of-this-name/data"])
def test_without_a_home_its_paths_are_refused(nobody, path):
    for use in (files.local_path, files.output_folder):
        with pytest.raises(InputError, match="no home folder is known"):
            use(path)
    assert files.local_path("./~data").name == "~data"


def test_without_a_home_nothing_is_downloaded(nobody, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    with pytest.raises(InputError, match="set HOME or HF_HOME"):
        hub.download("org/name", None)


@pytest.mark.parametrize("cache", ["relative/cache", "{}/a-file"])
def test_a_cache_that_cannot_be_had_is_none(nobody, tmp_path_factory, monkeypatch, cache):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "a-file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", cache.format(elsewhere))
    assert files.cache_folder("xla") is None
