"""finetune: a data set in; an adapter, its lineage and a report out, also after a full disk or a kill -9."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from photoflux.errors import InputError, PhotoFluxError
from photoflux.flux import callbacks, data, loading, module
from photoflux.flux.loading import load_pipeline
from photoflux.flux.lora import load_adapter
from photoflux.flux.sampling import generate
from photoflux.flux.spec import load_spec
from photoflux.manifest import digest, read_manifest, unpack, write_tar
from photoflux.params import FinetuneParams, as_dict
from photoflux.steps import StepResult, finetune
from photoflux.steps.finetune import WEIGHTS, run
from photoflux.tracking import Record, Registry
from photoflux.vault import committed, opened
from photoflux.vault.sealed import SealBroken
from photoflux.vault.sealed_store import SealedStore
from tests.judges.tiny import make_base, make_dataset, subject_of


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def dataset(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dog's photos as augment leaves them for this base, captions included."""
    made = make_dataset(tmp_path_factory.mktemp("dataset") / "made.tar", class_noun="dog")
    return rewritten(made, made.with_name("dataset.tar"))


def rewritten(dataset: Path, to: Path, **changes: Any) -> Path:
    """The data set with captions, and with other entries in its manifest."""
    manifest = unpack(dataset, to.with_suffix(""))
    for number, item in enumerate(manifest["items"]):
        item["caption"] = f"a photo of sks dog {('on the beach', 'in the snow', 'in space')[number % 3]}"
    files = {item["file"]: to.with_suffix("") / item["file"] for item in manifest["items"]}
    write_tar(to, files=files, manifest={**manifest, **changes})
    return to


def params(base: Path, **changes: Any) -> FinetuneParams:
    few: dict[str, Any] = {
        "base": str(base),
        "rank": 2,
        "alpha": 2.0,
        "steps": 6,
        "batch_size": 2,
        "lr": 0.01,
        "warmup_steps": 2,
        "preservation_batch": 2,
        "preservation_prompts": 3,
        "checkpoint_every": 3,
        "save_every": 2,
    }
    return FinetuneParams(**(few | changes))


def train(dataset: Path, folder: Path, how: FinetuneParams, **more: Any) -> StepResult:
    return run(dataset, adapter=folder / "adapter.tar", report=folder / "finetune.html", params=how, **more)


@pytest.fixture(scope="module")
def finished(base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, StepResult]]:
    """A training that nothing disturbed: its folder and result."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHOTOFLUX_STATE_DIR", str(folder / "state"))
        patch.setenv("PHOTOFLUX_DEVICE", "cpu")
        yield folder, train(dataset, folder, params(base))


@pytest.fixture(autouse=True)
def on_the_cpu(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOFLUX_DEVICE", "cpu")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of the adapter in a run's folder."""
    unpack(folder / "adapter.tar", folder / "parts")
    return load_file(folder / "parts" / WEIGHTS)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def left(own_state: Path) -> list[str]:
    """Work folders of trainings that did not end."""
    folder = own_state / "cache" / "finetune"
    return sorted(path.name for owner in folder.iterdir() for path in owner.iterdir()) if folder.exists() else []


def test_an_adapter_carries_its_lineage(finished: tuple[Path, StepResult], dataset: Path, base: Path) -> None:
    """Subject, base, parameters, digests of data set and weights, the kept step with its scores."""
    folder, result = finished
    manifest, spec = read_manifest(folder / "adapter.tar"), load_spec(base)
    assert manifest["subject"] == subject_of("dog")
    assert manifest["base"] == {"name": spec.name, "hash": spec.hash}
    assert manifest["params"] == as_dict(params(base)) | {"base": spec.name}
    assert manifest["dataset"] == digest(dataset)
    unpack(folder / "adapter.tar", folder / "parts")
    assert manifest["weights"] == digest(folder / "parts" / WEIGHTS)
    assert manifest["step"] == manifest["scores"]["step"] == result.metrics["step"]


def test_an_adapter_holds_weights_curves_and_previews(finished: tuple[Path, StepResult]) -> None:
    """Two candidates of six steps, each scored; six pictures of the kept one at the base's size."""
    folder, _ = finished
    unpack(folder / "adapter.tar", folder / "parts")
    files = {str(path.relative_to(folder / "parts")) for path in (folder / "parts").rglob("*") if path.is_file()}
    assert files == {WEIGHTS, "curves.json", *(f"previews/{number}.png" for number in range(6))}
    curves = json.loads((folder / "parts" / "curves.json").read_text())
    assert curves["steps"] == [1, 2, 3, 4, 5, 6]
    assert len(curves["subject"]) == len(curves["preserved"]) == 6
    assert [candidate["step"] for candidate in curves["candidates"]] == [3, 6]
    assert all(np.isfinite(list(candidate.values())).all() for candidate in curves["candidates"])
    assert curves["preserved"][0] < 1e-10 < curves["preserved"][-1]
    with Image.open(folder / "parts" / "previews" / "5.png") as picture:
        assert picture.size == (128, 128)


def test_the_same_training_elsewhere_and_slower_makes_the_same_artifact(
    finished: tuple[Path, StepResult], dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, so that it is the same version in the registry; the seconds stand in the step's own numbers."""
    average, place = module.update_average, tmp_path / "elsewhere"
    shutil.copytree(base.parent / "tiny", place / "tiny")
    shutil.copy(base, place / "renamed.yaml")
    monkeypatch.setattr(module, "update_average", lambda *a, **how: (time.sleep(0.1), average(*a, **how)))
    result = train(dataset, place / "out", params(place / "renamed.yaml"))
    assert result.metrics["seconds"] > 6 * 0.1
    first, second = finished[0] / "adapter.tar", place / "out" / "adapter.tar"
    assert first.read_bytes() == second.read_bytes()
    about = {"subject": "rex", "prompt": "sks dog", "key": "plain://demo", "experiment": "photoflux", "note": ""}
    for file in (first, second):
        with Registry().registered("rex", Record(file, digest(file), **about)) as version:
            assert version.number == 1


def test_the_adapter_draws_what_its_previews_show(finished: tuple[Path, StepResult], base: Path) -> None:
    """Loaded on a fresh base, prompt and seed of the validation give the kept picture, to a grey level."""
    from photoflux.judges.checkpoint_selection import FIRST_SEED

    folder, _ = finished
    unpack(folder / "adapter.tar", folder / "parts")
    pipe = load_pipeline(load_spec(base))
    load_adapter(pipe, folder / "parts" / WEIGHTS)
    drawn = generate(pipe, ["a photo of sks dog on the beach"], [FIRST_SEED], spec=load_spec(base))[0]
    preview = np.asarray(Image.open(folder / "parts" / "previews" / "0.png")).astype(int)
    assert np.abs(preview - np.asarray(drawn)).max() <= 1


def test_metrics_and_report_tell_how_it_went(finished: tuple[Path, StepResult]) -> None:
    """Numbers for the tracker, all finite, and a page with the kept step on it."""
    folder, result = finished
    expected = {
        "step",
        "validation",
        "identity",
        "prompt",
        "leakage",
        "diversity",
        "score",
        "loss",
        "skipped",
        "seconds",
    }
    assert set(result.metrics) == expected
    assert np.isfinite(list(result.metrics.values())).all()
    assert result.metrics["skipped"] == 0
    curves = json.loads((folder / "parts" / "curves.json").read_text())
    assert result.metrics["loss"] == curves["subject"][-1]
    assert result.report == folder / "finetune.html"
    assert f"Step {result.metrics['step']:.0f} was kept" in result.report.read_text()


def test_nothing_is_left_behind(finished: tuple[Path, StepResult]) -> None:
    """The work folder goes when the adapter is written, and outputs lie alone in their folder."""
    folder, _ = finished
    assert left(folder / "state") == []
    assert {path.name for path in folder.iterdir()} - {"parts", "state"} == {
        "adapter.tar",
        "finetune.html",
        "finetune-sealed.html",
    }


def test_the_same_inputs_give_the_same_weights(
    finished: tuple[Path, StepResult], dataset: Path, base: Path, tmp_path: Path
) -> None:
    """Bit for bit and with the same scores; another seed gives others."""
    folder, result = finished
    again = train(dataset, tmp_path, params(base))
    assert equal(weights(tmp_path), weights(folder))
    assert {**again.metrics, "seconds": 0} == {**result.metrics, "seconds": 0}
    train(dataset, tmp_path, params(base, seed=1))
    assert not equal(weights(tmp_path), weights(folder))


def test_equal_weights_are_one_file(
    finished: tuple[Path, StepResult], dataset: Path, base: Path, tmp_path: Path
) -> None:
    """The manifest's digest of the weights is reproducible: four times over, whatever order a header is written in."""
    digests = {read_manifest(finished[0] / "adapter.tar")["weights"]}
    for _ in range(3):
        train(dataset, tmp_path, params(base))
        digests.add(read_manifest(tmp_path / "adapter.tar")["weights"])
    assert len(digests) == 1


def test_the_last_candidate_is_kept_on_demand(dataset: Path, base: Path, tmp_path: Path) -> None:
    """With select last it is the last step's, without preservation too; the adapter says so."""
    result = train(dataset, tmp_path, params(base, select="last", preservation=0.0, steps=4))
    assert result.metrics["step"] == read_manifest(tmp_path / "adapter.tar")["step"] == 4
    curves = json.loads((unpacked(tmp_path) / "curves.json").read_text())
    assert curves["preserved"] == [0.0] * 4


def unpacked(folder: Path) -> Path:
    unpack(folder / "adapter.tar", folder / "parts")
    return folder / "parts"


@pytest.mark.slow
@pytest.mark.parametrize("judged", [True, False])
def test_other_held_out_photos_give_the_same_adapter(
    judged: bool, dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They judge it afterwards: weights are bit-equal, candidates have the same scores, and only their loss is another."""
    if not judged:
        spec = replace(load_spec(base), judges=None)
        monkeypatch.setattr("photoflux.flux.spec.load_spec", lambda _: spec)
    other = with_other_held_out(dataset, tmp_path / "in" / "other.tar")
    found = []
    for number, source in enumerate((dataset, other)):
        train(source, tmp_path / str(number), params(base, checkpoint_every=1))
        curves = json.loads((unpacked(tmp_path / str(number)) / "curves.json").read_text())
        found.append((weights(tmp_path / str(number)), curves["candidates"]))
    (first, of_first), (second, of_second) = found
    assert [one.pop("validation") for one in of_first] != [one.pop("validation") for one in of_second]
    assert of_first == of_second
    assert equal(first, second)


def with_other_held_out(dataset: Path, to: Path) -> Path:
    """The data set with pictures of nothing in the place of its held-out photos."""
    manifest = unpack(dataset, to.with_suffix(""))
    for number, item in enumerate(item for item in manifest["items"] if item["split"] == "heldout"):
        Image.new("RGB", (128, 128), ("black", "white")[number % 2]).save(to.with_suffix("") / item["file"])
    files = {item["file"]: to.with_suffix("") / item["file"] for item in manifest["items"]}
    write_tar(to, files=files, manifest=manifest)
    return to


def test_a_base_without_judges_keeps_the_last(
    dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells candidates apart that may choose, and metrics hold no judged numbers."""
    spec = replace(load_spec(base), judges=None)
    monkeypatch.setattr("photoflux.flux.spec.load_spec", lambda _: spec)
    result = train(dataset, tmp_path, params(base))
    assert result.metrics["step"] == 6
    assert "score" not in result.metrics


# Interrupted


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The fourth step of a training never comes."""
    batch = module.TrainingBatches.batch

    def until_the_fourth(batches: module.TrainingBatches, step: int) -> module.Batch:
        if step == 3:
            raise Killed
        return batch(batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(module.TrainingBatches, "batch", until_the_fourth)
        yield patch


def test_an_interrupted_run_goes_on(
    finished: tuple[Path, StepResult],
    dataset: Path,
    base: Path,
    tmp_path: Path,
    own_state: Path,
    deadly: pytest.MonkeyPatch,
) -> None:
    """Nothing is written but a work folder; the same call goes on there, encodes no photo again, and ends the same."""
    with pytest.raises(Killed):
        train(dataset, tmp_path, params(base))
    assert list(tmp_path.iterdir()) == []
    (name,) = left(own_state)
    assert (
        torch.load(own_state / "cache" / "finetune" / "demo" / name / callbacks.STATE, weights_only=True)["train_step"]
        == 2
    )
    deadly.undo()
    deadly.setattr(data, "encode_images", lambda *_: pytest.fail("a photo was encoded again"))
    train(dataset, tmp_path, params(base))
    assert equal(weights(tmp_path), weights(finished[0]))
    assert unpacked(tmp_path).joinpath("curves.json").read_bytes() == (
        unpacked(finished[0]).joinpath("curves.json").read_bytes()
    )
    assert left(own_state) == []


def test_another_training_does_not_go_on_there(
    dataset: Path, base: Path, tmp_path: Path, own_state: Path, deadly: pytest.MonkeyPatch
) -> None:
    """Other parameters or another data set get a work folder of their own; a given one is used as given."""
    other = rewritten(dataset, tmp_path / "other" / "other.tar", subject=subject_of("dog", consent="sample"))
    for source, how, more in (
        (dataset, params(base), {}),
        (dataset, params(base, lr=0.02), {}),
        (other, params(base), {}),
        (dataset, params(base), {"workdir": tmp_path / "mine"}),
    ):
        with pytest.raises(Killed):
            train(source, tmp_path / "out", how, **more)
    assert len(left(own_state)) == 3
    assert (tmp_path / "mine" / callbacks.STATE).is_file()


def test_a_run_does_not_go_on_with_what_another_run_left(
    dataset: Path, base: Path, tmp_path: Path, own_state: Path, deadly: pytest.MonkeyPatch
) -> None:
    """Two runs of one owner with the same photos and parameters: each begins anew, under its owner's folder."""
    sources = {}
    for number in (1, 2):
        source = tmp_path / f"run-{number}" / "dataset.tar"
        with committed(source, key=f"vault://ada/run-{number}") as unsealed:
            shutil.copy(dataset, unsealed)
        sources[number] = source
    with pytest.raises(Killed):
        train(sources[1], tmp_path / "out", params(base), key="vault://ada/run-1")
    deadly.undo()
    train(sources[2], tmp_path / "out", params(base), key="vault://ada/run-2")
    assert left(own_state) == ["run-1"]
    with pytest.raises(SealBroken), opened(sources[1], key="vault://ada/run-2"):
        pass
    train(sources[1], tmp_path / "out", params(base), key="vault://ada/run-1")
    assert left(own_state) == []


@pytest.fixture
def elsewhere(dataset: Path, base: Path, tmp_path: Path, root: Path) -> Iterator[subprocess.Popen[str]]:
    """The same training in a process of its own, stopped after its fourth step."""
    command = [sys.executable, "-c", CHILD, str(dataset), str(tmp_path), json.dumps(as_dict(params(base)))]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        next(line for line in child.stdout if int(line) == 4)
        os.kill(child.pid, signal.SIGSTOP)
        yield child
        child.kill()


def test_two_trainings_never_write_to_one_folder(
    elsewhere: subprocess.Popen[str], dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one is under way, another one fails with a sentence and has changed nothing."""
    monkeypatch.setattr(finetune, "LOCK_WAIT_S", 0.2)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "work").iterdir()}
    with pytest.raises(PhotoFluxError, match="another training is using it"):
        train(dataset, tmp_path, params(base), workdir=tmp_path / "work")
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "work").iterdir()} == before
    assert not (tmp_path / "adapter.tar").exists()


@pytest.mark.slow
def test_a_training_waits_for_one_that_is_about_to_end(
    elsewhere: subprocess.Popen[str],
    finished: tuple[Path, StepResult],
    dataset: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes on where the other one was killed, and ends as an undisturbed one."""
    load, killed = loading.load_encoders, threading.Timer(0.5, elsewhere.kill)

    def load_alone(*args: Any, **more: Any) -> Any:
        assert elsewhere.poll() is not None, "both are in the folder"
        return load(*args, **more)

    monkeypatch.setattr(loading, "load_encoders", load_alone)
    killed.start()
    train(dataset, tmp_path, params(base), workdir=tmp_path / "work")
    assert equal(weights(tmp_path), weights(finished[0]))
    assert not (tmp_path / "work").exists()


def test_a_folder_that_the_other_training_took_away_is_made_again(tmp_path: Path) -> None:
    """Whoever waited for the lock of a folder that is then removed takes the lock of the next one."""
    with ThreadPoolExecutor(1) as pool:
        with finetune._only_one_in(tmp_path / "work"):
            following = finetune._only_one_in(tmp_path / "work")
            waiting = pool.submit(following.__enter__)
            time.sleep(0.3)
            assert not waiting.done()
            shutil.rmtree(tmp_path / "work")
        waiting.result(10)
    assert finetune._try_lock(tmp_path / "work") is None
    following.__exit__(None, None, None)


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_while_training_is_said(
    finished: tuple[Path, StepResult],
    dataset: Path,
    base: Path,
    tmp_path: Path,
    own_state: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No output, one sentence with the folder, and what was saved stays: with space again the run goes on and ends."""
    put, written = SealedStore.put, list[str]()

    def filling(store: SealedStore, name: str, content: bytes) -> None:
        written.append(name)
        return full() if written.count(callbacks.STATE) == 2 else put(store, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(SealedStore, "put", filling)
        with pytest.raises(
            PhotoFluxError, match="the disk is full; free some space and run the same command"
        ) as caught:
            train(dataset, tmp_path, params(base))
    (name,) = left(own_state)
    assert name in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    train(dataset, tmp_path, params(base))
    assert equal(weights(tmp_path), weights(finished[0]))


@pytest.mark.parametrize("writer", ["os.replace", "tarfile.TarFile.addfile"])
def test_a_full_disk_while_writing_leaves_no_half_output(
    writer: str,
    finished: tuple[Path, StepResult],
    dataset: Path,
    base: Path,
    tmp_path: Path,
    own_state: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever writer meets the full disk: the output's folder stays empty, the work stays, a second call ends it."""
    out = tmp_path / "out"
    replace_file = os.replace

    def only_work(source: Any, target: Any) -> None:
        if Path(target).is_relative_to(out):
            full()
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(writer, only_work if writer == "os.replace" else full)
        with pytest.raises((OSError, PhotoFluxError)):
            train(dataset, out, params(base))
    assert list(out.rglob("*")) == []
    assert len(left(own_state)) == 1
    train(dataset, out, params(base))
    assert equal(weights(out), weights(finished[0]))


def test_a_full_disk_while_writing_is_said(
    dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `run` promises: a PhotoFluxError with what to do, for the adapter as for the state."""
    monkeypatch.setattr("tarfile.TarFile.addfile", full)
    with pytest.raises(PhotoFluxError, match="the disk is full"):
        train(dataset, tmp_path, params(base))


def test_a_full_disk_while_reporting_leaves_a_whole_adapter(
    dataset: Path, base: Path, tmp_path: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No half page; the work stays, so that the second call only writes again."""
    with monkeypatch.context() as patch:
        patch.setattr("photoflux.pages.page.write_text", full)
        with pytest.raises((OSError, PhotoFluxError)):
            train(dataset, tmp_path, params(base))
    assert [path.name for path in tmp_path.iterdir()] in ([], ["adapter.tar"])
    assert len(left(own_state)) == 1


# Refused


def test_a_class_the_base_does_not_know_is_refused(base: Path, tmp_path: Path, own_state: Path) -> None:
    """The noun, the base and the nouns it knows; nothing is trained or written."""
    made = make_dataset(tmp_path / "in" / "made.tar", class_noun="dog")
    strange = rewritten(made, tmp_path / "in" / "strange.tar", subject=subject_of("zeppelin"))
    with pytest.raises(InputError, match=r"class noun 'zeppelin' is unknown to base .*choose one of dog, cat"):
        train(strange, tmp_path / "out", params(base))
    assert not (tmp_path / "out").exists()


def test_a_dataset_of_another_base_is_refused(dataset: Path, base: Path, tmp_path: Path) -> None:
    """Its pictures have that base's size and its nouns: the sentence names both bases and the step to run again."""
    other = rewritten(dataset, tmp_path / "in" / "other.tar", base={"name": "flux1-schnell", "resolution_px": 128})
    with pytest.raises(InputError, match=r"'flux1-schnell'.*run augment"):
        train(other, tmp_path / "out", params(base))
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_held_out_pictures_is_refused(base: Path, tmp_path: Path) -> None:
    """Without them no candidate can be told from another; without training pictures nothing can be learnt."""
    for held_out in (0, 6):
        alone = make_dataset(tmp_path / "alone.tar", class_noun="dog", held_out=held_out)
        with pytest.raises(InputError, match="holds no training or no held-out pictures; run augment"):
            train(alone, tmp_path / "out", params(base))


@pytest.mark.parametrize("content", [None, b"", b"no tar at all", b"half"], ids=["missing", "empty", "text", "cut"])
def test_a_file_that_is_no_dataset_is_refused(content: bytes | None, dataset: Path, base: Path, tmp_path: Path) -> None:
    """The file's name and the step that makes it."""
    path = tmp_path / "broken.tar"
    if content is not None:
        path.write_bytes(dataset.read_bytes()[: dataset.stat().st_size // 2] if content == b"half" else content)
    with pytest.raises(InputError, match=r"broken\.tar: .*run the step that makes it"):
        train(path, tmp_path / "out", params(base))


def test_a_base_that_was_altered_is_refused(dataset: Path, base: Path, tmp_path: Path) -> None:
    """Before any weight is read: the file is named."""
    spec = load_spec(base)
    altered = replace(spec, manifest={**spec.manifest, "vae/config.json": "0" * 64})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("photoflux.flux.spec.load_spec", lambda _: altered)
        with pytest.raises(InputError, match=r"vae/config\.json is not the file its spec pins"):
            train(dataset, tmp_path / "out", params(base))


def test_a_key_of_an_unknown_kind_is_refused_first(dataset: Path, base: Path, tmp_path: Path) -> None:
    """Nothing is opened with a key URI that nobody understands."""
    with pytest.raises(InputError, match="no such kind of key"):
        train(dataset, tmp_path / "out", params(base), key="magic://x")


# Killed


CHILD = """
import json, sys
from pathlib import Path
from photoflux.flux import module
from photoflux.vault.sealed_store import SealedStore
from photoflux.params import FinetuneParams
from photoflux.steps.finetune import run

dataset, out, how = Path(sys.argv[1]), Path(sys.argv[2]), FinetuneParams(**json.loads(sys.argv[3]))
step = module.FinetuneModule.optimizer_step

def told(self, *args):
    step(self, *args)
    print(self.train_step, flush=True)

module.FinetuneModule.optimizer_step = told
run(dataset, adapter=out / "adapter.tar", report=out / "finetune.html", params=how, workdir=out / "work")
"""


def killed_at(step: int, wait_s: float, command: list[str], root: Path) -> list[int]:
    """Run a training in a process of its own and kill it -9 a moment after `step`; returns the steps it reported."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as child:
        steps: list[int] = []
        assert child.stdout is not None
        for line in child.stdout:
            steps.append(int(line))
            if steps[-1] >= step:
                time.sleep(wait_s)
                os.kill(child.pid, signal.SIGKILL)
                break
        child.wait()
    assert child.returncode == -signal.SIGKILL
    return steps


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_training_killed_at_ten_random_points_ends_as_an_undisturbed_one(
    dataset: Path, base: Path, tmp_path: Path, root: Path
) -> None:
    """kill -9 ten times, between steps, while drawing or while saving; the last process ends bit-equal, files too."""
    how = params(base, steps=70, checkpoint_every=5, save_every=3)
    train(dataset, tmp_path / "whole", how)
    rng = np.random.default_rng(20)
    points = sorted(rng.choice(np.arange(3, 56), size=10, replace=False).tolist())
    command = [sys.executable, "-c", CHILD, str(dataset), str(tmp_path / "killed"), json.dumps(as_dict(how))]
    reached = 0
    for point in points:
        steps = killed_at(point, float(rng.uniform(0, 0.05)), command, root)
        assert steps[0] > reached - 3, "more than the steps since the last saved state was lost"
        assert steps == list(range(steps[0], steps[-1] + 1))
        assert not (tmp_path / "killed" / "adapter.tar").exists()
        reached = steps[-1]
    train(dataset, tmp_path / "killed", how, workdir=tmp_path / "killed" / "work")
    assert equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    for name in ("curves.json", *(f"previews/{number}.png" for number in range(6))):
        parts = [(tmp_path / run_ / "parts" / name).read_bytes() for run_ in ("whole", "killed")]
        assert parts[0] == parts[1], name
    assert not (tmp_path / "killed" / "work").exists()
