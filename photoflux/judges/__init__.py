"""What looks at generated pictures: encoders, attribute readers, and the statistics over what they see."""
