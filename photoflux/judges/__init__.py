"""What judges generated images: encoders, attribute readers, and the statistics over their outputs."""
