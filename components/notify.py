"""Component: tell how the run ended."""

from kfp.dsl import Markdown, Output, PipelineTaskFinalStatus

from components._image import component


@component
def notify(summary: Output[Markdown], status: PipelineTaskFinalStatus) -> None:
    """Say in one paragraph how the run ended and, if it failed, in the failing step's own words."""
    import logging
    from pathlib import Path

    from photoflux.runs import read_failure, report_failure

    out = Path(summary.path)
    with report_failure("notify", output=out):
        failure = None if status.state == "SUCCEEDED" else read_failure(out.parent.parent)
        reason = f"{failure.step}: {failure.message}" if failure else status.error_message
        text = f"**{status.pipeline_job_resource_name}** ended: {status.state}. {reason or ''}".rstrip()
        out.write_text(text + "\n")
        logging.getLogger("photoflux").info(text)
