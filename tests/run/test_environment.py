"""A run's environment names the package's own commit, and no other repository's."""

import shutil
import subprocess
from pathlib import Path

import pytest

from milora.run import environment
from milora.run.environment import describe_environment

GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package's file inside a virtual environment, inside somebody's repository."""
    repository = tmp_path / "repository"
    file = repository / ".venv" / "milora" / "run" / "environment.py"
    file.parent.mkdir(parents=True)
    shutil.copy(environment.__file__, file)
    monkeypatch.setattr(environment, "__file__", str(file))
    return repository, file


def commit(repository: Path, *files: str) -> str:
    for arguments in (["init", "-q"], ["add", "-f", *files], ["commit", "-q", "-m", "first"]):
        subprocess.run([*GIT, "-C", str(repository), *arguments], check=True)
    done = subprocess.run(
        [*GIT, "-C", str(repository), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_repository_around_a_virtual_environment_is_not_the_packages(installed, capfd):
    repository, file = installed
    assert describe_environment().commit is None  # no repository at all
    (repository / "theirs.py").write_text("")
    commit(repository, "theirs.py")
    assert describe_environment().commit is None
    assert "fatal" not in "".join(capfd.readouterr())


def test_a_checkout_is_named_by_its_commit_and_an_edited_one_as_edited(installed):
    repository, file = installed
    found = commit(repository, str(file))
    assert describe_environment().commit == found
    file.write_text(file.read_text() + "\n")
    assert describe_environment().commit == f"{found}-dirty"
