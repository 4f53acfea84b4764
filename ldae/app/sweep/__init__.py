"""Search hyper-parameters of pretraining by Optuna."""
