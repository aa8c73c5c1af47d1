"""From photos to a model: taking photos in, judging them as a set, and the runs of the pipeline."""
