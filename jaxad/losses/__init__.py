"""Losses: pure functions of arrays, one value per image (`f32[B]`); the caller takes the (masked) mean."""
