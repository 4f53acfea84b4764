"""What is learned: each objective is a player, parameters with a loss."""
