"""Diffusion mathematics: schedules, corruptions, targets, weights and samplers, without networks."""
