"""Where images come from: TFDS builders, decoding, prepared caches, batches. TensorFlow is used nowhere else."""
