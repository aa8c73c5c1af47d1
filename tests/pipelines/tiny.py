"""A small pipeline with the shape of the real one: two steps, a condition and an exit handler."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components._image import component
from components.notify import notify


@component
def draw(picture: Output[Dataset], report: Output[HTML], metrics: Output[Metrics], trouble: str, wait_s: float) -> None:
    """Draw a picture, or get into trouble."""
    import os
    import signal
    import tempfile
    import time
    from pathlib import Path

    from photoflux.errors import InputError
    from photoflux.runs import report_failure

    with report_failure("draw", output=picture.path):
        if trouble == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        kept = Path(tempfile.mkdtemp()) / "opened.txt"
        kept.write_text("a red mug, unsealed")
        time.sleep(wait_s)
        if trouble == "input":
            raise InputError("the picture is upside down: turn it and run again")
        if trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "full disk":
            Path("/dev/full").write_text("x" * 100_000)
        if trouble == "silent":
            os._exit(7)
        Path(picture.path).write_text("a red mug")
        Path(report.path).write_text("<p>drawn</p>")
        Path(f"{report.path}-sealed").write_text("sealed: <p>drawn</p>")
        metrics.log_metric("pixels", 64.0)
        Path(metrics.path).touch()


@component
def judge(picture: Input[Dataset], seen: Output[Dataset], wanted: str) -> bool:
    """Say whether the picture shows what was wanted."""
    from pathlib import Path

    text = Path(picture.path).read_text()
    Path(seen.path).write_text(text)
    return wanted in text


@component
def hang(picture: Input[Dataset], hung: Output[Dataset]) -> None:
    """Put the picture on the wall."""
    from pathlib import Path

    Path(hung.path).write_text(Path(picture.path).read_text() + ", on the wall")


@dsl.pipeline(name="gallery")
def gallery(trouble: str = "none", wait_s: float = 0.0, wanted: str = "mug"):
    """Draw, judge and, if it is what was wanted, hang."""
    with dsl.ExitHandler(notify().set_display_name("Tell how it ended").set_caching_options(False)):
        drawn = draw(trouble=trouble, wait_s=wait_s).set_display_name("Draw").set_retry(3, backoff_duration="60s")
        judged = judge(picture=drawn.outputs["picture"], wanted=wanted).set_display_name("Judge")
        with dsl.If(judged.outputs["Output"] == True):  # noqa: E712
            hang(picture=drawn.outputs["picture"]).set_display_name("Hang")
