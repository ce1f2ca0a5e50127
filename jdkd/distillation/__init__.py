"""What distillation computes on the device: losses, selection, self-pacing and the train step."""
